"""Verify and refine: the next candidates are points of the surrogates' front, which may prove it wrong.

MAP verifies points of its front once it is done (Section 4.2); told back to the search, they correct the surrogates
where it matters.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from scipy.spatial.distance import cdist

from mergecore.acquisitions.base import Acquisition, Known
from mergecore.fronts.optimise import optimise_front
from mergecore.fronts.spread import farthest_first
from mergecore.options import PluginOptions


class FrontOptions(PluginOptions):
    """Options of verify and refine."""

    population: int = Field(100, ge=4, description="Of the front that is looked at.")
    generations: int = Field(60, ge=1)


class FrontPoints(Acquisition):
    """Points of the predicted front, each far from what was evaluated and from those proposed before it."""

    Options: ClassVar[type[PluginOptions]] = FrontOptions

    def propose(self, known: Known, count: int, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Greedy max-min over the front; coefficients that were evaluated or are pending are not proposed again."""
        surrogates = [fit.surrogate for fit in known.fits]
        points_PN, predicted_PT = optimise_front(
            surrogates,
            box=known.box_N2,
            maximise=known.objectives.maximise,
            population=self.options.population,
            generations=self.options.generations,
            seed=seed,
        )
        taken_KN = np.concatenate([known.coefficients_KN, known.pending_QN])
        low_N, high_N = known.box_N2.T
        nearest_P = cdist(points_PN / (high_N - low_N), taken_KN / (high_N - low_N), "sqeuclidean").min(axis=1)
        found = points_PN[farthest_first(points_PN / (high_N - low_N), nearest_P, count)]
        if len(found) < count:  # a front of few points: the rest of the batch is drawn around it
            rng = np.random.default_rng(seed)
            around = points_PN[rng.integers(len(points_PN), size=count - len(found))]
            shift = 0.1 * (high_N - low_N) * rng.standard_normal(around.shape)
            found = np.concatenate([found, np.clip(around + shift, low_N, high_N)])
        return found, {"points on the front": len(points_PN), "spread": float(np.ptp(predicted_PT, axis=0).mean())}
