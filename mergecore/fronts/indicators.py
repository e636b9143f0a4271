"""Measures of fronts: hypervolume, distances between fronts, win rate, preference-weighted sums.

Rows with NaN or infinity are left out everywhere, and the order of the rows never matters.

Shape suffixes: P and Q points of two fronts, T objectives, R preference vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import moocore
import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist

from mergecore.errors import InputError
from mergecore.fronts.dominance import to_minimise

EXACT_OBJECTIVES = 7
"""200 points take 0.5 s exactly with 7 objectives, and 15 s with 8."""


def hypervolume(
    metrics_PT: ArrayLike,
    *,
    reference_T: ArrayLike,
    maximise: Sequence[bool],
    method: Literal["auto", "exact", "approximate"] = "auto",
) -> float:
    """The volume between the points and a reference point (Zitzler and Thiele, 1998); more is better.

    Args:
        metrics_PT: the points. One that is not better than the reference in every objective adds nothing, repeated
            ones add nothing, no points give 0.
        reference_T: the worst values that count, in the metrics' own directions.
        maximise: for each objective, whether more is better.
        method: "exact" is exponential in T (Guerreiro, Fonseca and Paquete, 2021). "approximate" samples directions
            from the reference point (Deng and Zhang, 2019), is deterministic, and errs by about 0.1 % with 8 objectives
            in 0.1 s. "auto" is exact up to 7 objectives.

    Raises:
        InputError: shapes that do not fit, a reference that is not finite, or an unknown method.

    >>> hypervolume([[1.0, 0.5], [0.5, 1.0]], reference_T=[0.0, 0.0], maximise=[True, True])
    0.75
    """
    if method not in ("auto", "exact", "approximate"):
        raise InputError(f"Unknown method {method!r}.", "Use 'auto', 'exact' or 'approximate'.")
    costs_PT = to_minimise(_finite(metrics_PT), maximise=maximise)
    reference = to_minimise(np.atleast_2d(np.asarray(reference_T, dtype=np.float64)), maximise=maximise)
    if reference.shape[0] != 1 or not np.isfinite(reference).all():
        raise InputError("The reference point must be one finite value for each objective.")
    costs_PT = costs_PT[(costs_PT < reference).all(axis=1)]
    if not len(costs_PT):
        return 0.0
    if method == "exact" or (method == "auto" and len(maximise) <= EXACT_OBJECTIVES):
        return float(moocore.hypervolume(costs_PT, ref=reference[0]))
    return float(moocore.hv_approx(costs_PT, ref=reference[0], nsamples=2**17, method="Rphi-FWE+"))


def worst_metrics(metrics_PT: ArrayLike, *, maximise: Sequence[bool]) -> np.ndarray:
    """The worst value of each objective among the points, [T]: a reference point. NaN is left out.

    >>> worst_metrics([[1.0, 0.5], [0.5, 1.0]], maximise=[True, False]).tolist()
    [0.5, 1.0]
    """
    sign_T = np.where(maximise, 1.0, -1.0)
    return np.asarray(np.nanmin(np.asarray(metrics_PT, dtype=np.float64) * sign_T, axis=0) * sign_T)


def generational_distance(metrics_PT: ArrayLike, reference_QT: ArrayLike) -> float:
    """GD = (Σ_p d(p, reference)²)^½ / P (Van Veldhuizen, 1999; the form of MAP, Section D.2); less is better.

    d is the Euclidean distance to the nearest point of the reference front. Dividing by P outside the root makes
    larger fronts look better: compare fronts of one size.

    Raises:
        InputError: a front without points, or different numbers of objectives.

    >>> generational_distance([[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0]])
    2.5
    """
    points_PT, reference_QT = _fronts(metrics_PT, reference_QT)
    nearest_P = cdist(points_PT, reference_QT).min(axis=1)
    return float(np.sqrt((nearest_P**2).sum()) / len(points_PT))


def inverted_generational_distance(metrics_PT: ArrayLike, reference_QT: ArrayLike) -> float:
    """IGD: `generational_distance` from the reference front to the points (Coello and Cortés, 2005); less is better.

    Raises:
        InputError: as there.

    >>> inverted_generational_distance([[0.0, 0.0]], [[0.0, 0.0], [3.0, 4.0]])
    2.5
    """
    return generational_distance(reference_QT, metrics_PT)


def igd_plus(metrics_PT: ArrayLike, reference_QT: ArrayLike, *, maximise: Sequence[bool]) -> float:
    """IGD+ (Ishibuchi et al., 2015); less is better, and a dominated front is never better.

    The mean over the reference front of the distance to the nearest point, counting only what that point is worse by.

    Raises:
        InputError: as `generational_distance`, and directions that do not fit.

    >>> igd_plus([[1.0, 1.0]], [[0.5, 2.0]], maximise=[True, True])
    1.0
    """
    points_PT, reference_QT = _fronts(metrics_PT, reference_QT)
    costs_PT, reference = (to_minimise(front, maximise=maximise) for front in (points_PT, reference_QT))
    return float(moocore.igd_plus(costs_PT, ref=reference))


def win_rate(
    x_PT: ArrayLike, y_QT: ArrayLike, *, maximise: Sequence[bool], generator: np.random.Generator, draws: int = 100
) -> float:
    """How often front X beats front Y: the share of (i, j, t) with x_i strictly better on t than y_j (MAP, 4.2).

    ``draws`` points are taken from each front, without replacement unless it has fewer. Ties win for neither side, so
    the two win rates of a pair of fronts add up to at most 1.

    Raises:
        InputError: a front without points, or shapes that do not fit.

    >>> win_rate([[0.9, 0.5]], [[0.8, 0.5]], maximise=[True, True], generator=np.random.default_rng(0))
    0.5
    """
    x_PT, y_QT = _fronts(x_PT, y_QT)
    x, y = (
        to_minimise(front[generator.choice(len(front), draws, replace=len(front) < draws)], maximise=maximise)
        for front in (x_PT, y_QT)
    )
    return float((x[:, None] < y).mean())


def preferences(count: int, tasks: int, *, generator: np.random.Generator) -> np.ndarray:
    """Preference vectors [count, T], uniform on the simplex (Dirichlet(1)); MAP uses 20."""
    return generator.dirichlet(np.ones(tasks), size=count)


def preference_weighted_sums(
    predicted_PT: ArrayLike, real_PT: ArrayLike, *, preferences_RT: ArrayLike, maximise: Sequence[bool]
) -> np.ndarray:
    """What users with these preferences get: Σ_t r_t M_t of the point that the prediction would have them choose.

    MAP reports the mean and the standard deviation over 20 preferences. Metrics to minimise count negatively.

    Args:
        predicted_PT: metrics by the surrogates, for the choice.
        real_PT: metrics of the same points on the real models, for the sum. A point without all of both is left out.
        preferences_RT: preference vectors, see `preferences`.
        maximise: for each objective, whether more is better.

    Returns:
        [R]

    Raises:
        InputError: shapes that do not fit, or no complete point.

    >>> preference_weighted_sums([[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.1], [0.2, 0.9]],
    ...                          preferences_RT=[[0.5, 0.5], [0.0, 1.0]], maximise=[True, True])
    array([0.45, 0.9 ])
    """
    predicted = -to_minimise(predicted_PT, maximise=maximise)
    real = -to_minimise(real_PT, maximise=maximise)
    wanted_RT = np.asarray(preferences_RT, dtype=np.float64)
    if predicted.shape != real.shape or wanted_RT.ndim != 2 or wanted_RT.shape[1] != len(maximise):
        raise InputError(
            f"Predicted {list(predicted.shape)}, real {list(real.shape)} and preferences {list(wanted_RT.shape)} "
            "do not belong together."
        )
    usable = np.isfinite(predicted).all(axis=1) & np.isfinite(real).all(axis=1)
    if not usable.any():
        raise InputError("No point has all of its predicted and real metrics.")
    chosen_R = (wanted_RT @ predicted[usable].T).argmax(axis=1)
    return (wanted_RT * real[usable][chosen_R]).sum(axis=1)


def _finite(metrics_PT: ArrayLike) -> np.ndarray:
    points_PT = np.asarray(metrics_PT, dtype=np.float64)
    if points_PT.ndim != 2:
        raise InputError(f"Metrics of shape {list(points_PT.shape)} are not [points, objectives].")
    return points_PT[np.isfinite(points_PT).all(axis=1)]


def _fronts(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    fronts = _finite(first), _finite(second)
    if not all(len(front) for front in fronts):
        raise InputError("Two fronts can be compared only when each has a point with all its metrics.")
    if fronts[0].shape[1] != fronts[1].shape[1]:
        raise InputError(f"Fronts of {fronts[0].shape[1]} and {fronts[1].shape[1]} objectives cannot be compared.")
    return fronts
