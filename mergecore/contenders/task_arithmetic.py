"""Task arithmetic (Ilharco et al., "Editing models with task arithmetic", ICLR 2023) with one coefficient for all."""

from __future__ import annotations

import numpy as np

from mergecore.contenders.base import Contender, Field
from mergecore.errors import InputError, NumericalError
from mergecore.fronts.choose import by_preference


class TaskArithmetic(Contender):
    """c = λ·1 for the λ that is best on validation data when all tasks count the same.

    Over the columns of a transform or of a merge it gives TIES, DARE, TSV-M, Iso-C and the like their common scale.
    """

    def __init__(self, field: Field) -> None:
        super().__init__(field)
        self._metrics_KT: np.ndarray | None = None

    def ask(self) -> np.ndarray:
        """λ·1 for every λ that is worth trying; nothing when there is one only."""
        if self._metrics_KT is not None or len(self.field.scales) == 1:
            return super().ask()
        return self._candidates()

    def tell(self, coefficients_KN: np.ndarray, metrics_KT: np.ndarray) -> None:
        """Metrics of the candidates, in their order."""
        self._metrics_KT = metrics_KT

    def choose(self, preferences_RT: np.ndarray, *, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """The same λ for all preferences."""
        best = 0
        if len(self.field.scales) > 1:
            if self._metrics_KT is None:
                raise NumericalError("Task arithmetic was told nothing.")
            maximise = self.field.objectives.maximise
            equal_T = np.full(len(maximise), 1 / len(maximise))
            try:
                best = by_preference(self._metrics_KT, weights=equal_T, maximise=maximise, scale=scale)  # type: ignore[arg-type]
            except InputError as error:
                raise NumericalError(str(error)) from None
        chosen_N = self._candidates()[best]
        return np.tile(chosen_N, (len(preferences_RT), 1)), self.unpredicted(preferences_RT)

    def _candidates(self) -> np.ndarray:
        return np.outer(self.field.scales, np.ones(self.field.columns))
