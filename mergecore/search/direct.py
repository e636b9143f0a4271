"""Direct search: evaluate many coefficient vectors, keep the non-dominated ones (baseline of MAP, Section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from mergecore.errors import NumericalError
from mergecore.fronts.dominance import non_dominated
from mergecore.search.base import Front, Search, SearchOptions
from mergecore.search.sampled import SampledOptions, SampledSearch

if TYPE_CHECKING:
    from mergecore.fronts.config import FrontConfig


class DirectOptions(SampledOptions):
    """``search:`` of the config for direct search."""

    method: Literal["direct"] = "direct"


class DirectSearch(SampledSearch):
    """The front is the non-dominated part of the samples, all real (budgets: MAP, Tables 2 and 3)."""

    Options: ClassVar[type[SearchOptions]] = DirectOptions
    takes_estimates: ClassVar[bool] = False  # its front is what it was told
    paper_samples: ClassVar[dict[int, int]] = {2: 200, 3: 300, 4: 300, 5: 500, 6: 500, 7: 1000, 8: 1000}

    def front(self, options: FrontConfig) -> Front:
        """The non-dominated evaluations; rows with a failed metric take no part."""
        return measured_front(self)


def measured_front(search: Search) -> Front:
    """The non-dominated part of what a search was told.

    Raises:
        NumericalError: nothing was measured on every task.
    """
    chosen = non_dominated(search.metrics_KT, maximise=search.objectives.maximise)
    if not chosen.any():
        raise NumericalError("No candidate was measured on every task, so there is no front.")
    real = search.metrics_KT[chosen]
    return Front(search.coefficients_KN[chosen], np.full_like(real, np.nan), real)
