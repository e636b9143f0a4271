"""Measures of fronts (methods of MAP, Section 4 and Appendix). Suffixes: P and Q points, T objectives."""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from scipy.spatial.distance import cdist

from mergecore.errors import InputError
from mergecore.fronts.dominance import to_minimise


def hypervolume(metrics_PT: np.ndarray, *, reference_T: np.ndarray, maximise: Sequence[bool]) -> float:
    """Volume that the points dominate, up to the reference point (Zitzler and Thiele, 1998); more is better.

    Args:
        metrics_PT: points; rows with NaN are ignored, points worse than the reference in some objective add nothing.
        reference_T: the reference point, in the metrics' own directions.
        maximise: direction of each objective.

    >>> hypervolume([[1.0, 0.5], [0.5, 1.0]], reference_T=[0.0, 0.0], maximise=[True, True])
    0.75
    """
    costs = to_minimise(_finite(metrics_PT), maximise=maximise)
    if not len(costs):
        return 0.0
    reference = to_minimise(np.asarray(reference_T, dtype=np.float64)[None], maximise=maximise)[0]
    return float(moocore.hypervolume(costs, ref=reference))


def generational_distance(metrics_PT: np.ndarray, reference_QT: np.ndarray) -> float:
    """GD = (sum_s d(s, S*)²)^(1/2) / |S| (Van Veldhuizen, 1999; the form of MAP); less is better.

    d is the Euclidean distance to the nearest point of the reference front.

    >>> generational_distance([[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0]])
    2.5
    """
    points, reference = _both(metrics_PT, reference_QT)
    nearest = cdist(points, reference).min(axis=1)
    return float(np.sqrt((nearest**2).sum()) / len(points))


def inverted_generational_distance(metrics_PT: np.ndarray, reference_QT: np.ndarray) -> float:
    """IGD: `generational_distance` from the reference front to the points (Coello and Cortés, 2005); less is better.

    >>> inverted_generational_distance([[0.0, 0.0]], [[0.0, 0.0], [3.0, 4.0]])
    2.5
    """
    return generational_distance(reference_QT, metrics_PT)


def igd_plus(metrics_PT: np.ndarray, reference_QT: np.ndarray, *, maximise: Sequence[bool]) -> float:
    """IGD+ (Ishibuchi et al., 2015): distances count only what a point is worse by; less is better.

    >>> igd_plus([[1.0, 1.0]], [[0.5, 2.0]], maximise=[True, True])
    1.0
    """
    points, reference = _both(metrics_PT, reference_QT)
    return float(moocore.igd_plus(to_minimise(points, maximise=maximise), to_minimise(reference, maximise=maximise)))


def win_rate(
    x_PT: np.ndarray, y_QT: np.ndarray, *, maximise: Sequence[bool], generator: np.random.Generator, draws: int = 100
) -> float:
    """Share of (i, j, n) in which point i of X is strictly better than point j of Y on task n (MAP, Section 4.2).

    ``draws`` points are taken from each front, with replacement when it has fewer. Ties count as no win, so the two
    win rates of a pair of fronts add up to at most 1.
    """
    x, y = _both(x_PT, y_QT)
    chosen = [
        to_minimise(front[generator.choice(len(front), draws, replace=len(front) < draws)], maximise=maximise)
        for front in (x, y)
    ]
    return float((chosen[0][:, None] < chosen[1][None]).mean())


def preferences(count: int, tasks: int, *, generator: np.random.Generator) -> np.ndarray:
    """Preference vectors [count, T], uniform on the simplex (Dirichlet(1); MAP, Table 4 uses 20)."""
    return generator.dirichlet(np.ones(tasks), size=count)


def _finite(metrics_PT: np.ndarray) -> np.ndarray:
    points = np.asarray(metrics_PT, dtype=np.float64)
    return points[np.isfinite(points).all(axis=1)]


def _both(metrics_PT: np.ndarray, reference_QT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points, reference = _finite(metrics_PT), _finite(reference_QT)
    if not len(points) or not len(reference):
        raise InputError("A distance between fronts needs at least one finite point in each.")
    return points, reference
