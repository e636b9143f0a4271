"""What a comparison asks of every method: which candidates to evaluate first, then one candidate for each preference.

Shape suffixes: K candidates, N columns of the task matrix, T tasks, R preferences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mergecore.errors import InputError
from mergecore.search import Front, Objectives


@dataclass(frozen=True)
class Field:
    """What is compared.

    Attributes:
        columns: N, columns of the task matrix.
        objectives: the T objectives.
        owners: for each task the column of the model that was fine-tuned for it; None where there is none.
        scales: common factors of the task vectors that are worth trying.
    """

    columns: int
    objectives: Objectives
    owners: tuple[int | None, ...]
    scales: tuple[float, ...] = ()

    def owner(self, task: int) -> int:
        """The column of the model that was fine-tuned for a task.

        Raises:
            InputError: there is none.
        """
        owner = self.owners[task]
        if owner is None:
            raise InputError(
                f"No model was fine-tuned for the task {self.objectives.names[task]!r}.",
                "Give models and tasks the same names, or say 'head: <model>' at a task.",
            )
        return owner


class Contender(ABC):
    """Coefficients for preferences, chosen on the data of the search.

    The loop is that of a search: ``ask`` until there is nothing left, ``tell`` the metrics, then ``choose``.

    Class attributes:
        bound: whether it is no merge but what merges are measured against.
    """

    bound: ClassVar[bool] = False

    def __init__(self, field: Field) -> None:
        self.field = field

    def ask(self) -> np.ndarray:
        """The next coefficient vectors [k, N] to evaluate on the data of the search; [0, N] when there are none."""
        return np.empty((0, self.field.columns))

    def tell(self, coefficients_KN: np.ndarray, metrics_KT: np.ndarray) -> None:  # noqa: B027
        """What was asked for, evaluated; NaN marks a metric that could not be measured."""

    @abstractmethod
    def choose(self, preferences_RT: np.ndarray, *, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """The candidate for each preference.

        Args:
            preferences_RT: rows on the simplex.
            scale: "none" adds metrics as they are, "range" scales each to [0, 1] first (`mergecore.fronts.choose`).

        Returns:
            Coefficients [R, N], or [R, T, N] when each task has a model of its own; and predicted metrics [R, T], NaN
            where nothing predicts them.

        Raises:
            InputError: it cannot serve these tasks.
            NumericalError: nothing usable was told.
        """

    def front(self) -> Front | None:
        """The front behind the choices; None when there is no more than the choices."""
        return None

    def unpredicted(self, preferences_RT: np.ndarray) -> np.ndarray:
        """[R, T] of NaN."""
        return np.full((len(preferences_RT), len(self.field.objectives.names)), np.nan)
