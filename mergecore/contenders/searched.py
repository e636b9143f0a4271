"""A search method as a contender: its front serves every preference."""

from __future__ import annotations

import numpy as np

from mergecore.contenders.base import Contender, Field
from mergecore.errors import InputError, NumericalError
from mergecore.fronts.choose import by_preference
from mergecore.fronts.config import FrontConfig
from mergecore.search import Front, Search


class Searched(Contender):
    """The point of the front that its predictions prefer: the surrogates' (MAP), or what was measured (direct search).

    Args:
        field: what is compared.
        search: fresh.
        options: how the front of the surrogates is found.
    """

    def __init__(self, field: Field, search: Search, options: FrontConfig) -> None:
        super().__init__(field)
        self._search, self._options = search, options
        self._front: Front | None = None
        self._ahead_KN = np.empty((0, search.models))

    def ask(self) -> np.ndarray:
        """What the search asks for."""
        return self._ahead_KN if len(self._ahead_KN) else self._search.ask()

    def tell(self, coefficients_KN: np.ndarray, metrics_KT: np.ndarray) -> None:
        """Told to the search, which may have asked ahead as it would in a run of its own."""
        self._ahead_KN = self._search.ask_ahead(coefficients_KN)
        self._search.tell(coefficients_KN, metrics_KT)

    def front(self) -> Front:
        """The search's front; found once."""
        if self._front is None:
            self._front = self._search.front(self._options)
        return self._front

    def choose(self, preferences_RT: np.ndarray, *, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """One point of the front a preference."""
        front, maximise = self.front(), self.field.objectives.maximise
        known_PT = np.where(np.isfinite(front.predicted_PT), front.predicted_PT, front.real_PT)
        try:
            rows = [by_preference(known_PT, weights=r, maximise=maximise, scale=scale) for r in preferences_RT]  # type: ignore[arg-type]
        except InputError as error:
            raise NumericalError(str(error)) from None
        return front.coefficients_PN[rows], front.predicted_PT[rows]
