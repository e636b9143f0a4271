"""What a search may spend, and what it has spent: (coefficient vector, task) pairs, and minutes.

Shape suffixes: K candidates, N models, T tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from mergecore.errors import InputError
from mergecore.section import Section

if TYPE_CHECKING:
    from mergecore.search import Search

ALL_SAMPLES = "all samples"
PAIRS = "budget.pairs"
MINUTES = "budget.minutes"


class BudgetConfig(Section):
    """Bounds of the search of a run, whatever its method; verification is not part of it."""

    pairs: int | None = Field(
        None, ge=1, description="Most (coefficient vector, task) evaluations; what the ledger knows counts too."
    )
    minutes: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Wall clock of one run; running it again gives it as many anew."
    )
    warm_start: bool = Field(
        False, description="Begin with what the ledger knows of these models, tasks and data; the result depends on it."
    )


class Tally:
    """Distinct (coefficient vector, task) pairs."""

    def __init__(self) -> None:
        self._pairs: set[tuple[tuple[float, ...], int]] = set()

    def add(self, coefficients_KN: np.ndarray, wanted_KT: np.ndarray) -> None:
        """Count the wanted pairs that are new."""
        for c, wanted_T in zip(coefficients_KN.tolist(), wanted_KT, strict=True):
            self._pairs |= {(tuple(c), int(t)) for t in np.flatnonzero(wanted_T)}

    @property
    def pairs(self) -> int:
        """How many there are."""
        return len(self._pairs)

    @property
    def vectors(self) -> int:
        """Coefficient vectors among them."""
        return len({c for c, _ in self._pairs})

    def copy(self) -> Tally:
        """One that goes on counting on its own."""
        other = Tally()
        other._pairs = set(self._pairs)
        return other


class Spending:
    """What a search in progress has spent of its budget.

    Args:
        budget: what it may spend.
        started: when the run started, by ``clock``.
        clock: seconds.

    Attributes:
        tally: what was evaluated so far.
    """

    def __init__(self, budget: BudgetConfig, *, started: float, clock: Callable[[], float] = time.time) -> None:
        self._budget, self._started, self._clock = budget, started, clock
        self.tally = Tally()

    @property
    def minutes(self) -> float:
        """Since the run started."""
        return (self._clock() - self._started) / 60

    def time_left(self) -> bool:
        """Whether more may be evaluated as far as time goes."""
        return self._budget.minutes is None or self.minutes < self._budget.minutes

    def over(self, tasks: int) -> str:
        """Which bound allows no further candidate on all T tasks; empty when none does."""
        if not self.time_left():
            return MINUTES
        if self._budget.pairs is not None and self.tally.pairs + tasks > self._budget.pairs:
            return PAIRS
        return ""

    def fitting(self, coefficients_KN: np.ndarray, wanted_KT: np.ndarray) -> int:
        """How many of these candidates, from the first one on, the pairs that are left allow."""
        if self._budget.pairs is None:
            return len(coefficients_KN)
        trial = self.tally.copy()
        for k in range(len(coefficients_KN)):
            trial.add(coefficients_KN[k : k + 1], wanted_KT[k : k + 1])
            if trial.pairs > self._budget.pairs:
                return k
        return len(coefficients_KN)


def affordable(budget: BudgetConfig, search: Search) -> int:
    """Coefficient vectors that the budget's pairs allow the search; its own number where they allow all."""
    if budget.pairs is None or search.pairs <= budget.pairs:
        return search.budget
    return budget.pairs // len(search.objectives.names)


def check_budget(budget: BudgetConfig, search: Search) -> None:
    """Refuse a budget that no front can be found within.

    Raises:
        InputError: too few pairs for any fit, or a bound or a warm start for a search that takes just its own samples.
    """
    if budget.warm_start and not search.divisible:
        raise InputError(
            f"search.method {search.options.method} takes just its own samples, so budget.warm_start is not for it.",
            "Leave it out: what the ledger knows is not evaluated again anyway.",
        )
    if budget.pairs is None or search.pairs <= budget.pairs:
        return
    method, tasks = search.options.method, len(search.objectives.names)
    if not search.divisible:
        raise InputError(
            f"search.method {method} takes up to {search.pairs} (coefficient vector, task) evaluations and cannot be "
            f"cut short, but budget.pairs is {budget.pairs}.",
            f"Set budget.pairs to {search.pairs}, or search.samples lower.",
        )
    if affordable(budget, search) < search.fewest:
        raise InputError(
            f"budget.pairs is {budget.pairs}, but a front of {tasks} tasks takes at least {search.fewest * tasks} "
            f"(coefficient vector, task) evaluations, {search.fewest} vectors on each task.",
            "Set budget.pairs higher.",
        )


def budget_notes(budget: BudgetConfig, search: Search) -> list[str]:
    """What a user should know of a search that its budget will cut."""
    vectors = affordable(budget, search)
    if vectors == search.budget:
        return []
    return [f"budget.pairs allows {vectors} of the {search.budget} coefficient vectors that the search would take."]


def ending(spent: Mapping[str, Any]) -> str:
    """Why the search ended, by the entry ``spent`` of a summary."""
    return "took all its samples" if spent["ended"] == ALL_SAMPLES else f"ended by {spent['ended']}"


def spent_sentence(spent: Mapping[str, Any]) -> str:
    """The entry ``spent`` of a summary in one sentence."""
    line = f"The search took {spent['pairs']} (coefficient vector, task) evaluations and {spent['minutes']:.1f} minutes"
    warm = f", {spent['warm_start']} coefficient vectors came from the warm start" if spent["warm_start"] else ""
    return f"{line} and {ending(spent)}{warm}; verification took {spent['verification_pairs']} more."
