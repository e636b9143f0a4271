"""Choose one point of a front. Shape suffixes: P points, T objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mergecore.errors import InputError
from mergecore.fronts.dominance import to_minimise


def by_preference(
    metrics_PT: np.ndarray,
    *,
    weights: np.ndarray,
    maximise: Sequence[bool],
    scale: Literal["none", "range"] = "none",
) -> int:
    """The point with the best preference-weighted sum of metrics; the first of equal ones.

    Args:
        metrics_PT: the front; rows with NaN are ignored.
        weights: [T], not negative.
        maximise: direction of each objective.
        scale: "none" weighs the metrics as they are (the paper's sum); "range" scales each objective to [0, 1] over
            the front first, for metrics in different units.
    """
    costs = _costs(metrics_PT, maximise)
    if scale == "range":
        low, high = np.nanmin(costs, axis=0), np.nanmax(costs, axis=0)
        costs = (costs - low) / np.where(high > low, high - low, 1.0)
    return int(np.nanargmin(costs @ np.asarray(weights, dtype=np.float64)))


def by_constraints(
    metrics_PT: np.ndarray, *, at_least: Mapping[int, float], best: int, maximise: Sequence[bool]
) -> int:
    """The best point on one objective among those that are at least as good as the bounds on others.

    Args:
        metrics_PT: the front; rows with NaN are ignored.
        at_least: objective to bound; where less is better the metric must not exceed it.
        best: the objective to make as good as possible.
        maximise: direction of each objective.

    Raises:
        InputError: no point meets the bounds; the best reachable values are given.
    """
    costs = _costs(metrics_PT, maximise)
    sign = np.where(maximise, -1.0, 1.0)
    feasible = np.isfinite(costs).all(axis=1)
    for objective, bound in at_least.items():
        with np.errstate(invalid="ignore"):
            feasible &= costs[:, objective] <= sign[objective] * bound
    if not feasible.any():
        reach = ", ".join(f"{sign[t] * np.nanmin(costs[:, t]):.4g} on objective {t}" for t in at_least)
        raise InputError("No point of the front meets all bounds.", f"Best reachable one by one: {reach}.")
    return int(np.where(feasible, costs[:, best], np.inf).argmin())


def knee(metrics_PT: np.ndarray, *, maximise: Sequence[bool]) -> int:
    """The point nearest to the ideal when every objective is scaled to [0, 1] over the front.

    (The compromise solution of Zeleny, 1973, in the Euclidean norm.) Rows with NaN are ignored.
    """
    costs = _costs(metrics_PT, maximise)
    low, high = np.nanmin(costs, axis=0), np.nanmax(costs, axis=0)
    scaled = (costs - low) / np.where(high > low, high - low, 1.0)
    return int(np.nanargmin((scaled**2).sum(axis=1)))


def _costs(metrics_PT: np.ndarray, maximise: Sequence[bool]) -> np.ndarray:
    costs = to_minimise(metrics_PT, maximise=maximise)
    usable = np.isfinite(costs).all(axis=1)
    if not usable.any():
        raise InputError("No point of this front has all its metrics.")
    costs[~usable] = np.nan
    return costs
