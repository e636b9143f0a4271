"""What a search may spend, and what it has spent: (coefficient vector, task) pairs, and minutes.

Shape suffixes: K candidates, N models, T tasks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator

from mergecore.errors import InputError
from mergecore.fidelity import grown_count
from mergecore.section import Section

if TYPE_CHECKING:
    from mergecore.search import Search

ALL_SAMPLES = "all samples"
PAIRS = "budget.pairs"
MINUTES = "budget.minutes"
ROUNDING = 1e-9
"""Of sums of shares."""


class StopConfig(Section):
    """When a search is over before its samples are: all three for some rounds in a row."""

    hypervolume: float = Field(
        0.005, ge=0, description="A round adds at most this share of the evaluated points' hypervolume, on average."
    )
    gap: float = Field(
        0.05,
        ge=0,
        description="Predictions of a round's candidates miss by at most this share of a metric's range, or its noise.",
    )
    front: float = Field(0.02, ge=0, description="The front moves by at most this share of the metrics' ranges.")
    rounds: int = Field(2, ge=1, description="How many rounds in a row.")


class BudgetConfig(Section):
    """Bounds of the search of a run, whatever its method; verification is not part of it."""

    pairs: int | None = Field(
        None,
        ge=1,
        description="Most (coefficient vector, task) evaluations; what the ledger knows counts, a part of the data its "
        "share.",
    )
    minutes: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Wall clock of one run; running it again gives it as many anew."
    )
    share: float = Field(
        1.0, gt=0, le=1, description="Part of each task's data that every candidate is measured on first."
    )
    grow: float = Field(
        0.4, gt=0, le=1, description="Part of a round's candidates, the nearest to its front, that all data follow for."
    )
    warm_start: bool = Field(
        False, description="Begin with what the ledger knows of these models, tasks and data; the result depends on it."
    )
    stop: StopConfig | None = Field(
        None, description="End the search when more would not change the front; 'true' for the usual tolerances."
    )

    @field_validator("stop", mode="before", json_schema_input_type=StopConfig | bool | None)
    @classmethod
    def _usual_tolerances(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value


Pending = tuple[np.ndarray, np.ndarray]
"""Coefficient vectors [K, N] that are being evaluated and were not counted yet, and which metrics of them [K, T]."""


class Tally:
    """Distinct (coefficient vector, task) pairs, on all of a task's data, on the part of it, or both.

    Args:
        share_T: the part's share of each task's examples.
    """

    def __init__(self, share_T: np.ndarray) -> None:
        self._share_T = share_T
        # coefficient vectors by task
        self._whole: list[set[tuple[float, ...]]] = [set() for _ in share_T]
        self._part: list[set[tuple[float, ...]]] = [set() for _ in share_T]

    def add(self, coefficients_KN: np.ndarray, wanted_KT: np.ndarray, *, part: bool = False) -> None:
        """Count the wanted pairs that are new, on the part of the data or on all of it."""
        seen = self._part if part else self._whole
        for c, wanted_T in zip(coefficients_KN.tolist(), wanted_KT, strict=True):
            for t in np.flatnonzero(wanted_T):
                seen[t].add(tuple(c))

    @property
    def pairs(self) -> int:
        """How many there are, wherever they were measured."""
        return sum(len(whole | part) for whole, part in zip(self._whole, self._part, strict=True))

    @property
    def full_pairs(self) -> float:
        """What they cost in pairs on all data: a pair on the part counts its share, one on both counts both."""
        on_part = sum(len(part) * float(share) for part, share in zip(self._part, self._share_T, strict=True))
        return sum(map(len, self._whole)) + on_part

    @property
    def measurements(self) -> int:
        """Pairs on all data and pairs on the part of it."""
        return sum(map(len, self._whole)) + sum(map(len, self._part))

    @property
    def vectors(self) -> int:
        """Coefficient vectors among them."""
        return len(set().union(*self._whole, *self._part))

    def copy(self) -> Tally:
        """One that goes on counting on its own."""
        other = Tally(self._share_T)
        other._whole, other._part = [set(seen) for seen in self._whole], [set(seen) for seen in self._part]
        return other


class Spending:
    """What a search in progress has spent of its budget.

    Args:
        budget: what it may spend.
        share_T: the share of each task's examples that every candidate is measured on first; 1 where that is all.
        started: when the run started, by ``clock``.
        clock: seconds.

    Attributes:
        tally: what was evaluated so far.
    """

    def __init__(
        self, budget: BudgetConfig, *, share_T: np.ndarray, started: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._budget, self._share_T, self._started, self._clock = budget, share_T, started, clock
        self.tally = Tally(share_T)

    @property
    def minutes(self) -> float:
        """Since the run started."""
        return (self._clock() - self._started) / 60

    def time_left(self) -> bool:
        """Whether more may be evaluated as far as time goes."""
        return self._budget.minutes is None or self.minutes < self._budget.minutes

    def over(self, pending: Pending | None = None) -> str:
        """Which bound allows no further candidate on all T tasks; empty when none does."""
        if not self.time_left():
            return MINUTES
        if (bound := self._budget.pairs) is None:
            return ""
        spent = self._with(pending).full_pairs
        return PAIRS if spent + _price(self._budget, self._share_T, 1) > bound + ROUNDING else ""

    def fitting(self, coefficients_KN: np.ndarray, wanted_KT: np.ndarray, pending: Pending | None = None) -> int:
        """How many of these candidates, from the first one on, the pairs that are left allow."""
        if self._budget.pairs is None:
            return len(coefficients_KN)
        trial = self._with(pending)
        for k in range(len(coefficients_KN)):
            trial.add(coefficients_KN[k : k + 1], wanted_KT[k : k + 1], part=self._budget.share < 1)
            later = _grown(self._budget, k + 1) * wanted_KT.shape[1]
            if trial.full_pairs + later > self._budget.pairs + ROUNDING:
                return k
        return len(coefficients_KN)

    def _with(self, pending: Pending | None) -> Tally:
        trial = self.tally.copy()
        if pending is not None:
            trial.add(*pending)
        return trial


def _grown(budget: BudgetConfig, vectors: int) -> int:
    """Of so many candidates in a round, those that are measured on all data after the part of it."""
    return grown_count(vectors, budget.grow) if budget.share < 1 else 0


def _price(budget: BudgetConfig, share_T: np.ndarray, vectors: int) -> float:
    """A round of so many candidates on all tasks, in pairs on all data."""
    return vectors * float(share_T.sum()) + _grown(budget, vectors) * len(share_T)


def affordable(budget: BudgetConfig, search: Search, share_T: np.ndarray) -> tuple[int, float]:
    """What a search may take: coefficient vectors, and what they cost in pairs on all data.

    Rounds are taken as one, so that where a part of the data comes first, many small ones may cost a little else.
    """
    price = float(search.pairs) if budget.share == 1 else _price(budget, share_T, search.budget)
    if budget.pairs is None or price <= budget.pairs + ROUNDING:
        return search.budget, price
    vectors = next(v for v in range(search.budget, -1, -1) if _price(budget, share_T, v) <= budget.pairs + ROUNDING)
    return vectors, _price(budget, share_T, vectors)


def check_budget(budget: BudgetConfig, search: Search, share_T: np.ndarray) -> None:
    """Refuse a budget that no front can be found within, and a way to spend it that a search cannot go.

    Raises:
        InputError: one sentence, with what to change.
    """
    method, tasks = search.options.method, len(search.objectives.names)
    if budget.warm_start and not search.divisible:
        raise InputError(
            f"search.method {method} takes just its own samples, so budget.warm_start is not for it.",
            "Leave it out: what the ledger knows is not evaluated again anyway.",
        )
    if budget.stop and not search.divisible:
        raise InputError(
            f"search.method {method} takes just its own samples, so budget.stop is not for it.",
            "Leave it out, or set search.samples lower.",
        )
    if budget.share < 1 and not search.takes_estimates:
        raise InputError(
            f"search.method {method} needs every metric on all data, so budget.share is not for it.",
            "Leave it out, or search by 'map' or 'bayesian_map'.",
        )
    if budget.share < 1 and search.asks_ahead:
        raise InputError(
            "search.overlap begins a round before the one before it is done, but with budget.share that one decides "
            "then what is measured on all data.",
            "Leave one of them out.",
        )
    if budget.share < 1 and search.wants_some:
        raise InputError(
            "search.focus measures some tasks alone, which budget.share cannot do.", "Leave one of them out."
        )
    vectors, _ = affordable(budget, search, share_T)
    if budget.pairs is None or vectors == search.budget:
        return
    if not search.divisible:
        raise InputError(
            f"search.method {method} takes up to {search.pairs} (coefficient vector, task) evaluations and cannot be "
            f"cut short, but budget.pairs is {budget.pairs}.",
            f"Set budget.pairs to {search.pairs}, or search.samples lower.",
        )
    if vectors < search.fewest:
        raise InputError(
            f"budget.pairs is {budget.pairs}, but a front of {tasks} tasks takes at least "
            f"{math.ceil(_price(budget, share_T, search.fewest))} (coefficient vector, task) evaluations, "
            f"{search.fewest} vectors on each task.",
            "Set budget.pairs higher.",
        )


def budget_notes(budget: BudgetConfig, search: Search, share_T: np.ndarray) -> list[str]:
    """What a user should know of a search that its budget will cut."""
    vectors, _ = affordable(budget, search, share_T)
    if vectors == search.budget:
        return []
    return [f"budget.pairs allows {vectors} of the {search.budget} coefficient vectors that the search would take."]


def ending(spent: Mapping[str, Any]) -> str:
    """Why the search ended, by the entry ``spent`` of a summary."""
    if spent["ended"] == ALL_SAMPLES:
        return "took all its samples"
    return f"ended by {spent['ended']}" if spent["ended"] in (PAIRS, MINUTES) else f"stopped with {spent['ended']}"


def spent_sentence(spent: Mapping[str, Any], *, measured: str = "coefficient vector") -> str:
    """The entry ``spent`` of a summary in one sentence; ``measured`` is what a candidate of this search is called."""
    line = f"The search took {spent['pairs']} ({measured}, task) evaluations"
    line += f", worth {spent['full_pairs']:.1f} on all data," if spent["full_pairs"] != spent["pairs"] else ""
    warm = f", {spent['warm_start']} {measured}s came from the warm start" if spent["warm_start"] else ""
    line += f" and {spent['minutes']:.1f} minutes and {ending(spent)}{warm}"
    return f"{line}; verification took {spent['verification_pairs']} more."
