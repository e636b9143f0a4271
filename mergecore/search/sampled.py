"""What methods share that evaluate so many candidates at once and then look at them."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mergecore.sampling import sample
from mergecore.search.base import Search, SearchOptions


class CountedOptions(SearchOptions):
    """How many candidates."""

    samples: int | None = Field(None, ge=1, description="Candidates to evaluate; default: the paper's number.")


class CountedSearch(Search):
    """Asks at once for all its candidates.

    Class attributes:
        paper_samples: the paper's budget for N coordinates.
    """

    at_once: ClassVar[bool] = True
    paper_samples: ClassVar[dict[int, int]]
    options: CountedOptions

    def default_budget(self) -> int:
        """Candidates for numbers of coordinates that the paper has no budget for."""
        return max(self.paper_samples.values())

    @property
    def budget(self) -> int:
        """K: given, or the paper's for N coordinates, or `default_budget`."""
        return self.options.samples or self.paper_samples.get(self.models) or self.default_budget()

    @abstractmethod
    def drawn(self) -> np.ndarray:
        """All candidates, [K, N]."""

    def ask(self) -> np.ndarray:
        """What is missing of K: all the first time, nothing once K candidates were told, whosever they are."""
        missing = self.budget - len(self.coefficients_KN)
        if missing <= 0:
            return np.empty((0, self.models))
        return without(self.drawn(), self.coefficients_KN)[:missing]


class SampledOptions(CountedOptions):
    """How many coefficient vectors, drawn how."""

    sampler: Literal["sobol", "uniform", "simplex"] = "sobol"


class SampledSearch(CountedSearch):
    """Candidates that a sampler draws in the box."""

    options: SampledOptions

    def drawn(self) -> np.ndarray:
        """By the config's sampler and seed."""
        return sample(self.options.sampler, self.budget, box=self.box_N2, seed=self.options.seed)


def without(drawn_KN: np.ndarray, told_QN: np.ndarray) -> np.ndarray:
    """The drawn coefficient vectors that are not, to the last bit, among those told."""
    told = {tuple(c) for c in told_QN.tolist()}
    return drawn_KN[[tuple(c) not in told for c in drawn_KN.tolist()]]
