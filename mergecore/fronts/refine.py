"""The last steps after an optimiser's run: descend to the front, and choose which points stand for it.

All costs are minimised and of order one. Shape suffixes: C candidates, P points, N models, T objectives, S sample
points, L step lengths.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import qmc

Costs = Callable[[np.ndarray], np.ndarray]

SAMPLES_LOG2 = 12
MARGIN = 0.1
"""The reference point lies this share of the range beyond the nadir, so that the ends of the front count as well."""

STEPS = 8
LENGTHS_L = 2.0 ** np.arange(2, -6, -1)
FIRST_LENGTH = 0.1
DIFFERENCE = 1e-6
FRANK_WOLFE_STEPS = 20


def choose_by_hypervolume(costs_CT: np.ndarray, count: int, *, generator: np.random.Generator) -> np.ndarray:
    """At most ``count`` of the candidates that together dominate much hypervolume.

    First the best candidate for each objective, so that no end of the front is lost; then greedily the one that adds
    most, which reaches at least 1 - 1/e of the best subset's gain (Guerreiro, Fonseca and Paquete, 2016). Volume is
    measured on Sobol points spread over the union of the dominated boxes (Karp and Luby, 1983), because exact
    hypervolume is exponential in T. Time and memory grow with C * 4096.

    Args:
        costs_CT: non-dominated candidates, C >= 1.
        count: how many to choose.
        generator: scrambles the Sobol points.

    Returns:
        Indices [min(count, C)] in the order of choice: the first few of them are a good short list.
    """
    low_T, high_T = costs_CT.min(axis=0), costs_CT.max(axis=0)
    scaled_CT = (costs_CT - low_T) / np.where(high_T > low_T, high_T - low_T, 1.0)
    sums_C = scaled_CT.sum(axis=1)
    chosen = list(dict.fromkeys(int(np.lexsort((sums_C, scaled_C))[0]) for scaled_C in scaled_CT.T))[:count]
    sample_ST = _points_in_union(scaled_CT, generator)
    covers_SC = np.ones((len(sample_ST), len(scaled_CT)), dtype=bool)
    for sample_S, scaled_C in zip(sample_ST.T, scaled_CT.T, strict=True):
        covers_SC &= scaled_C <= sample_S[:, None]
    # a sample point in m boxes was drawn m times too often
    weight_S = (1.0 / np.maximum(covers_SC.sum(axis=1), 1)).astype(np.float32)
    gain_C = np.zeros(len(scaled_CT), dtype=np.float32)
    for rows in np.array_split(np.arange(len(sample_ST)), 16):  # products of booleans go through a float copy
        gain_C += weight_S[rows] @ covers_SC[rows]
    is_open_S = np.ones(len(sample_ST), dtype=bool)
    position = 0
    while position < min(count, len(scaled_CT)):
        if position == len(chosen):
            chosen.append(int(gain_C.argmax()))
        covered = np.flatnonzero(covers_SC[:, chosen[position]] & is_open_S)
        is_open_S[covered] = False
        gain_C -= weight_S[covered] @ covers_SC[covered]
        gain_C[chosen[position]] = -np.inf
        position += 1
    return np.array(chosen)


def _points_in_union(scaled_CT: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Points [S, T]: a box [cost, 1 + margin] by its share of volume, then a point uniform in it."""
    top = 1.0 + MARGIN
    volume_C = np.prod(top - scaled_CT, axis=1)
    unit = qmc.Sobol(scaled_CT.shape[1] + 1, scramble=True, seed=generator).random_base2(SAMPLES_LOG2)
    shares_C = np.cumsum(volume_C) / volume_C.sum()
    corner_ST = scaled_CT[np.searchsorted(shares_C, unit[:, 0]).clip(max=len(scaled_CT) - 1)]
    return corner_ST + unit[:, 1:] * (top - corner_ST)


def descend(costs: Costs, points_PN: np.ndarray, *, box_N2: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Move each point where every objective improves, until none can without another getting worse.

    Multiple-gradient descent (Désidéri, 2012): the direction is minus the shortest vector in the convex hull of the
    objectives' gradients, in the box; of several step lengths the best that worsens no objective is taken. A point is
    therefore never traded for one that it does not equal or lose to, and spread is kept.

    Args:
        costs: [P, N] -> [P, T]; called P (N + 8) rows a step. It need not be smooth, but only smooth objectives gain.
        points_PN: starts, in the box.
        box_N2: lower and upper bound of each variable.
        steps: how many.

    Returns:
        [P, N]: a point as good as or better than each start in every objective.
    """
    lower_N, upper_N = box_N2.T
    side_N = upper_N - lower_N
    points_PN, costs_PT = points_PN.copy(), costs(points_PN)
    every = np.arange(len(points_PN))
    length_P = np.full(len(points_PN), FIRST_LENGTH)
    for _ in range(steps):
        gradient_PNT = _gradients(costs, points_PN, costs_PT, box_N2) * side_N[:, None]
        direction_PN = _common_descent(gradient_PNT, points_PN <= lower_N, points_PN >= upper_N) * side_N
        tried_PL = length_P[:, None] * LENGTHS_L
        tried_PLN = np.clip(points_PN[:, None] + tried_PL[:, :, None] * direction_PN[:, None], lower_N, upper_N)
        tried_PLT = costs(tried_PLN.reshape(-1, len(box_N2))).reshape(*tried_PL.shape, -1)
        gain_PLT = costs_PT[:, None] - tried_PLT
        gain_PL = np.where((gain_PLT >= 0).all(axis=2), gain_PLT.sum(axis=2), 0.0)
        best_P = gain_PL.argmax(axis=1)
        better = np.flatnonzero(gain_PL[every, best_P] > 0)
        points_PN[better], costs_PT[better] = tried_PLN[better, best_P[better]], tried_PLT[better, best_P[better]]
        length_P *= LENGTHS_L[-1]
        length_P[better] = tried_PL[better, best_P[better]]
    return points_PN


def _gradients(costs: Costs, points_PN: np.ndarray, costs_PT: np.ndarray, box_N2: np.ndarray) -> np.ndarray:
    """[P, N, T] by one-sided differences that stay in the box."""
    lower_N, upper_N = box_N2.T
    step_PN = np.where(points_PN + DIFFERENCE * (upper_N - lower_N) > upper_N, -1.0, 1.0) * DIFFERENCE
    step_PN = step_PN * (upper_N - lower_N)
    moved_PNN = points_PN[:, None] + step_PN[:, :, None] * np.eye(len(box_N2))
    moved_PNT = costs(moved_PNN.reshape(-1, len(box_N2))).reshape(*points_PN.shape, -1)
    return (moved_PNT - costs_PT[:, None]) / step_PN[:, :, None]


def _common_descent(gradient_PNT: np.ndarray, at_lower_PN: np.ndarray, at_upper_PN: np.ndarray) -> np.ndarray:
    """Unit directions [P, N] in which all objectives fall; zero where there is none.

    Variables that would leave the box are fixed, and the direction is found again without them, twice at most.
    """
    free_PN = np.ones(at_lower_PN.shape, dtype=bool)
    for _ in range(3):
        gradient_PNT = gradient_PNT * free_PN[:, :, None]
        weights_PT = _shortest_in_hull(gradient_PNT.swapaxes(1, 2) @ gradient_PNT)
        direction_PN = -(gradient_PNT @ weights_PT[:, :, None])[:, :, 0]
        leaving_PN = (at_lower_PN & (direction_PN < 0)) | (at_upper_PN & (direction_PN > 0))
        if not leaving_PN.any():
            break
        free_PN &= ~leaving_PN
    length_P1 = np.linalg.norm(direction_PN, axis=1, keepdims=True)
    return direction_PN / np.where(length_P1 > 0, length_P1, 1.0)


def _shortest_in_hull(gram_PTT: np.ndarray) -> np.ndarray:
    """Weights [P, T] on the simplex that minimise wᵀ G w, by Frank-Wolfe with exact line search (Jaggi, 2013)."""
    points = np.arange(len(gram_PTT))
    weights_PT = np.full(gram_PTT.shape[:2], 1.0 / gram_PTT.shape[1])
    for _ in range(FRANK_WOLFE_STEPS):
        slope_PT = (gram_PTT @ weights_PT[:, :, None])[:, :, 0]
        corner_P = slope_PT.argmin(axis=1)
        here_P, cross_P = (weights_PT * slope_PT).sum(axis=1), slope_PT[points, corner_P]
        bend_P = here_P - 2 * cross_P + gram_PTT[points, corner_P, corner_P]
        step_P = np.clip((here_P - cross_P) / np.where(bend_P > 0, bend_P, 1.0), 0.0, 1.0)
        weights_PT *= 1 - step_P[:, None]
        weights_PT[points, corner_P] += step_P
    return weights_PT
