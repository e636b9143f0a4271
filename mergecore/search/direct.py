"""Direct search: evaluate many coefficient vectors, keep the non-dominated ones (baseline of MAP, Section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from mergecore.errors import NumericalError
from mergecore.fronts.dominance import non_dominated
from mergecore.sampling import sample
from mergecore.search.base import Front, Search, SearchOptions

if TYPE_CHECKING:
    from mergecore.config import FrontConfig

PAPER_SAMPLES = {2: 200, 3: 300, 4: 300, 5: 500, 6: 500, 7: 1000, 8: 1000}
"""Coefficient vectors of direct search (MAP, Tables 2 and 3)."""


class DirectOptions(SearchOptions):
    """``search:`` of the config for direct search."""

    method: Literal["direct"] = "direct"
    samples: int | None = Field(None, ge=1, description="Coefficient vectors to evaluate; default: the paper's budget.")
    sampler: Literal["sobol", "uniform", "simplex"] = "sobol"


class DirectSearch(Search):
    """Asks once for K samples; the front is the non-dominated part of them, all real."""

    Options: ClassVar[type[SearchOptions]] = DirectOptions
    options: DirectOptions

    @property
    def budget(self) -> int:
        """K: given, or the paper's for N models (1000 past 8)."""
        return self.options.samples or PAPER_SAMPLES.get(self.models, 1000)

    def ask(self) -> np.ndarray:
        """All K samples the first time, nothing afterwards."""
        if len(self.coefficients_KN):
            return np.empty((0, self.models))
        return sample(self.options.sampler, self.budget, box=self.box_N2, seed=self.options.seed)

    def front(self, options: FrontConfig) -> Front:
        """The non-dominated evaluations; rows with a failed metric take no part."""
        chosen = non_dominated(self.metrics_KT, maximise=self.objectives.maximise)
        if not chosen.any():
            raise NumericalError("No coefficient vector was measured on every task, so there is no front.")
        real = self.metrics_KT[chosen]
        return Front(self.coefficients_KN[chosen], np.full_like(real, np.nan), real)
