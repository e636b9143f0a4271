"""Choose a few points that stand for a whole front. Shape suffixes: P points, T objectives, D dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergecore.fronts.dominance import to_minimise


def spread_points(metrics_PT: np.ndarray, count: int, *, maximise: Sequence[bool]) -> np.ndarray:
    """Indices of at most ``count`` points: each objective's best, the best compromise, then the farthest from those.

    Objectives are scaled to [0, 1] over the front; the compromise is the point nearest to the ideal; every further
    point is the one with the largest distance to all chosen before (greedy max-min, Gonzalez 1985).

    Args:
        metrics_PT: the front.
        count: how many points; all when it is not smaller than P.
        maximise: direction of each objective.

    Returns:
        Indices in order of choice, [min(count, P)]. Rows with NaN are never chosen.
    """
    usable = np.flatnonzero(np.isfinite(metrics_PT).all(axis=1))
    if count <= 0 or not len(usable):
        return np.empty(0, dtype=np.intp)
    costs = to_minimise(metrics_PT[usable], maximise=maximise)
    span = np.ptp(costs, axis=0)
    scaled = (costs - costs.min(axis=0)) / np.where(span > 0, span, 1.0)
    first = [int(scaled[:, t].argmin()) for t in range(scaled.shape[1])]
    chosen = list(dict.fromkeys([*first, int((scaled**2).sum(axis=1).argmin())]))[:count]
    nearest = np.min([((scaled - scaled[i]) ** 2).sum(axis=1) for i in chosen], axis=0)
    return usable[farthest_first(scaled, nearest, count, chosen=chosen)]


def farthest_first(
    points_PD: np.ndarray, nearest_P: np.ndarray, count: int, *, chosen: Sequence[int] = ()
) -> np.ndarray:
    """Greedy max-min (Gonzalez 1985): each further point is the one farthest from all that are there already.

    Args:
        points_PD: in units in which distances mean something.
        nearest_P: squared distance of each to the nearest of what is there already, ``chosen`` included.
        count: how many points in all; no more than P.
        chosen: the first ones.

    Returns:
        Indices in order of choice, each once.
    """
    found = list(chosen)
    while len(found) < min(count, len(points_PD)):
        found.append(int(np.where(np.isin(np.arange(len(points_PD)), found), -1.0, nearest_P).argmax()))
        nearest_P = np.minimum(nearest_P, ((points_PD - points_PD[found[-1]]) ** 2).sum(axis=1))
    return np.array(found, dtype=np.intp)
