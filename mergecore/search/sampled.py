"""What methods share that evaluate one sample of the box and then look at it."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mergecore.sampling import sample
from mergecore.search.base import Search, SearchOptions


class SampledOptions(SearchOptions):
    """How many coefficient vectors, drawn how."""

    samples: int | None = Field(None, ge=1, description="Coefficient vectors to evaluate; default: the paper's budget.")
    sampler: Literal["sobol", "uniform", "simplex"] = "sobol"


class SampledSearch(Search):
    """Asks at once for all its samples.

    Class attributes:
        paper_samples: the paper's budget for N models.
    """

    at_once: ClassVar[bool] = True
    paper_samples: ClassVar[dict[int, int]]
    options: SampledOptions

    def default_budget(self) -> int:
        """Samples for numbers of models that the paper has no budget for."""
        return max(self.paper_samples.values())

    @property
    def budget(self) -> int:
        """K: given, or the paper's for N models, or `default_budget`."""
        return self.options.samples or self.paper_samples.get(self.models) or self.default_budget()

    def ask(self) -> np.ndarray:
        """What is missing of K samples: all the first time, nothing once K candidates were told, whosever they are."""
        missing = self.budget - len(self.coefficients_KN)
        if missing <= 0:
            return np.empty((0, self.models))
        drawn_KN = sample(self.options.sampler, self.budget, box=self.box_N2, seed=self.options.seed)
        return without(drawn_KN, self.coefficients_KN)[:missing]


def without(drawn_KN: np.ndarray, told_QN: np.ndarray) -> np.ndarray:
    """The drawn coefficient vectors that are not, to the last bit, among those told."""
    told = {tuple(c) for c in told_QN.tolist()}
    return drawn_KN[[tuple(c) not in told for c in drawn_KN.tolist()]]
