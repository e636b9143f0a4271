"""The acquisition of Bayesian MAP (MAP, Appendix E.3, Algorithm 3): angular bins where the surrogates err.

Coefficients, scaled to the unit box, are directions and lengths. Each of the N - 1 hyperspherical angles is cut into
equal bins; a cell of that grid is scored by the upper confidence bound of the surrogates' squared errors of the
points in it. A cell without a point is the least known one and has the highest score. Cells are drawn from a softmax
of the standardised scores, then a direction uniform in the cell and a length uniform along its ray in the box.

Errors are those of cross-validation: the paper's six first points and a quadratic of two coefficients have as many
values as parameters, so that its own errors would all be zero.

Shape suffixes: K evaluated candidates, N coefficients, T objectives, A = N - 1 angles.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mergecore.acquisitions.base import Acquisition, Known
from mergecore.options import PluginOptions

QUARTER = np.pi / 2
RESAMPLES = 200
TRIES = 1000
Cell = tuple[int, ...]


class AngularBinsOptions(PluginOptions):
    """Options of the paper's acquisition."""

    bins: int = Field(4, ge=1, description="Equal parts of each angle's quarter turn.")
    kappa: float = Field(0.5, ge=0, description="Weight of the standard deviation in the upper confidence bound.")
    temperature: float = Field(0.07, gt=0, description="Of the softmax over standardised scores.")


class AngularBins(Acquisition):
    """Empty cells first, then those where cross-validated errors are large."""

    Options: ClassVar[type[PluginOptions]] = AngularBinsOptions

    def propose(self, known: Known, count: int, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """One cell after the other; a cell that holds a proposed or a pending point is not drawn while others are."""
        rng = np.random.default_rng(seed)
        bins, N = self.options.bins, len(known.box_N2)
        scores = self._scores(known, rng)
        empty = float(bins) ** (N - 1) - len(scores)
        taken = set(cells(_to_unit(known.pending_QN, known.box_N2), bins))
        posterior, of_empty = softmax(scores, empty, self.options.temperature)
        points = []
        for _ in range(count):
            cell = self._draw(posterior, of_empty, taken, N, rng)
            taken.add(cell)
            points.append(_point_in(cell, bins, rng))
        low_N, high_N = known.box_N2.T
        facts = {
            "cells": [{"cell": list(cell), "score": scores[cell], "probability": p} for cell, p in posterior.items()],
            "probability of an empty cell": of_empty,
            "empty cells": empty,
        }
        return np.clip(low_N + np.array(points) * (high_N - low_N), low_N, high_N), facts

    def _scores(self, known: Known, rng: np.random.Generator) -> dict[Cell, float]:
        """Upper confidence bound of each occupied cell's mean squared error; the mean's deviation by resampling."""
        usable_K = np.isfinite(known.metrics_KT).all(axis=1)
        errors_K = np.zeros(int(usable_K.sum()))
        for t, fit in enumerate(known.fits):
            observed_K, out_of_fold_K = fit.observed, fit.out_of_fold
            found = np.full(len(known.metrics_KT), np.nan)
            found[np.isfinite(known.metrics_KT[:, t])] = (observed_K - out_of_fold_K) ** 2
            spread = float(np.var(observed_K)) or 1.0  # tasks count the same whatever their metric's unit
            errors_K += np.nan_to_num(found[usable_K]) / spread
        members: dict[Cell, list[float]] = {}
        usable_KN = _to_unit(known.coefficients_KN[usable_K], known.box_N2)
        for cell, error in zip(cells(usable_KN, self.options.bins), errors_K.tolist(), strict=True):
            members.setdefault(cell, []).append(error)
        scores = {}
        for cell, found_errors in members.items():
            values = np.array(found_errors)
            means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
            scores[cell] = float(values.mean() + self.options.kappa * means.std())
        return scores

    def _draw(
        self, posterior: dict[Cell, float], of_empty: float, taken: set[Cell], N: int, rng: np.random.Generator
    ) -> Cell:
        bins = self.options.bins
        free = {cell: p for cell, p in posterior.items() if cell not in taken}
        if of_empty > 0 and rng.random() * (of_empty + sum(free.values())) < of_empty:
            for _ in range(TRIES):
                cell = tuple(rng.integers(bins, size=N - 1).tolist())
                if cell not in posterior and cell not in taken:
                    return cell
        choices = free or posterior
        if not choices:
            return tuple(rng.integers(bins, size=N - 1).tolist())
        weights = np.array(list(choices.values()))
        weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))
        return list(choices)[int(rng.choice(len(weights), p=weights))]


def softmax(scores: dict[Cell, float], empty: float, temperature: float) -> tuple[dict[Cell, float], float]:
    """Probabilities of the occupied cells, and of all ``empty`` ones together, whose score is the highest."""
    if not scores:
        return {}, 1.0
    values = np.array(list(scores.values()))
    spread = values.std()
    standard = (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))
    weights = np.exp((standard - standard.max()) / temperature)
    total = weights.sum() + empty
    return dict(zip(scores, (weights / total).tolist(), strict=True)), float(empty / total)


def cells(unit_KN: np.ndarray, bins: int) -> list[Cell]:
    """The cell of each point of the unit box."""
    places_KA = np.minimum((angles(unit_KN) / QUARTER * bins).astype(int), bins - 1)
    return [tuple(row) for row in places_KA.tolist()]


def angles(unit_KN: np.ndarray) -> np.ndarray:
    """Hyperspherical angles [K, N - 1] in [0, π/2] of points with no negative coordinate; the origin's are 0."""
    tails = np.sqrt(np.cumsum(unit_KN[:, ::-1] ** 2, axis=1))[:, ::-1]
    return np.arctan2(tails[:, 1:], unit_KN[:, :-1])


def direction(angles_A: Iterable[float]) -> np.ndarray:
    """The unit vector [N] with these angles; the inverse of `angles` on the sphere."""
    found, rest = [], 1.0
    for angle in angles_A:
        found.append(rest * np.cos(angle))
        rest *= np.sin(angle)
    return np.array([*found, rest])


def _point_in(cell: Cell, bins: int, rng: np.random.Generator) -> np.ndarray:
    """A point of the unit box: angles uniform in the cell, length uniform up to the box's side."""
    unit_N = direction((np.array(cell) + rng.random(len(cell))) * QUARTER / bins)
    return np.minimum(unit_N * rng.random() / unit_N.max(), 1.0)


def _to_unit(points_KN: np.ndarray, box_N2: np.ndarray) -> np.ndarray:
    low_N, high_N = box_N2.T
    return np.clip((points_KN - low_N) / (high_N - low_N), 0.0, 1.0)
