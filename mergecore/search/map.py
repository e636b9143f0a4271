"""Plain MAP: sample once, fit quadratic surrogates, amortise the front (MAP, Section 3, Algorithm 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from mergecore.search.base import Front, SearchOptions
from mergecore.search.sampled import SampledOptions, SampledSearch
from mergecore.surrogates import QuadraticFit, fit_quadratic
from mergecore.surrogates.least_squares import parameter_count

if TYPE_CHECKING:
    from mergecore.fronts.config import FrontConfig


class MapOptions(SampledOptions):
    """``search:`` of the config for plain MAP."""

    method: Literal["map"] = "map"


class MapSearch(SampledSearch):
    """The front is that of the surrogates and costs no evaluation (budgets: MAP, Tables 2 and 3)."""

    Options: ClassVar[type[SearchOptions]] = MapOptions
    paper_samples: ClassVar[dict[int, int]] = {2: 30, 3: 50, 4: 60, 5: 85, 6: 100, 7: 140, 8: 250}

    @property
    def parameters(self) -> int:
        """p: parameters of one quadratic."""
        return parameter_count(self.models)

    @property
    def fewest(self) -> int:
        """N + 1, which a plane takes."""
        return min(self.models + 1, self.budget)

    def default_budget(self) -> int:
        """Past 8 models 1.5 evaluations a parameter."""
        return 3 * self.parameters // 2

    def notes(self, *, workers: int = 1) -> list[str]:
        """A warning when K < p, where the quadratic is under-determined."""
        if self.budget < self.parameters:
            return [
                f"{self.budget} samples for a quadratic with {self.parameters} parameters: it will be under-determined."
            ]
        return []

    def fits(self) -> tuple[QuadraticFit, ...]:
        """One surrogate an objective, from everything told so far."""
        goals = self.objectives
        return tuple(
            fit_quadratic(self.coefficients_KN, self.metrics_KT[:, t], lower=goals.lower[t], upper=goals.upper[t])
            for t in range(len(goals.names))
        )

    def front(self, options: FrontConfig) -> Front:
        """Fit one surrogate an objective, then run the many-objective optimiser on them in the same box."""
        from mergecore.fronts.optimise import optimise_front  # pymoo takes a second to import

        goals, fits = self.objectives, self.fits()
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
