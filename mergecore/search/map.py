"""Plain MAP: sample once, fit quadratic surrogates, amortise the front (MAP, Section 3, Algorithm 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from mergecore.sampling import sample
from mergecore.search.base import Front, Search, SearchOptions
from mergecore.surrogates import fit_quadratic

if TYPE_CHECKING:
    from mergecore.config import FrontConfig

PAPER_SAMPLES = {2: 30, 3: 50, 4: 60, 5: 85, 6: 100, 7: 140, 8: 250}
"""K for MAP (MAP, Tables 2 and 3)."""


class MapOptions(SearchOptions):
    """``search:`` of the config for plain MAP."""

    method: Literal["map"] = "map"
    samples: int | None = Field(None, ge=1, description="Coefficient vectors to evaluate; default: the paper's budget.")
    sampler: Literal["sobol", "uniform", "simplex"] = "sobol"


class MapSearch(Search):
    """Asks once for K samples; the front is that of the surrogates and costs no evaluation."""

    Options: ClassVar[type[SearchOptions]] = MapOptions
    options: MapOptions

    @property
    def budget(self) -> int:
        """K: given, or the paper's for N models, or 1.5 times the quadratic's parameters past 8 models."""
        if self.options.samples is not None:
            return self.options.samples
        return PAPER_SAMPLES.get(self.models, 3 * (self.models + 1) * (self.models + 2) // 4)

    def notes(self) -> list[str]:
        """A warning when K < p, where the quadratic is under-determined."""
        parameters = (self.models + 1) * (self.models + 2) // 2
        if self.budget < parameters:
            return [f"{self.budget} samples for a quadratic with {parameters} parameters: it will be under-determined."]
        return []

    def ask(self) -> np.ndarray:
        """All K samples the first time, nothing afterwards."""
        if len(self.coefficients_KN):
            return np.empty((0, self.models))
        return sample(self.options.sampler, self.budget, box=self.box_N2, seed=self.options.seed)

    def front(self, options: FrontConfig) -> Front:
        """Fit one surrogate an objective, then run the many-objective optimiser on them in the same box."""
        from mergecore.fronts.optimise import optimise_front  # pymoo takes a second to import

        goals = self.objectives
        fits = tuple(
            fit_quadratic(self.coefficients_KN, self.metrics_KT[:, t], lower=goals.lower[t], upper=goals.upper[t])
            for t in range(len(goals.names))
        )
        coefficients, predicted = optimise_front(
            [fit.surrogate for fit in fits],
            box=self.box_N2,
            maximise=goals.maximise,
            algorithm=options.algorithm,
            population=options.population,
            generations=options.generations,
            seed=self.options.seed,
        )
        return Front(coefficients, predicted, np.full_like(predicted, np.nan), fits)
