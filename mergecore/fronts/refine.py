"""The last steps after an optimiser's run: choose the points that stand for the front, and move them onto it.

All costs are minimised and of order one. Shape suffixes: C candidates, P points, N models, T objectives, D directions,
L step lengths.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import ndtri

from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.evolve import Costs, offspring

ROUNDS = 4
BROODS = 4

DIRECTIONS_LOG2 = 10
MARGIN = 0.1
"""The reference point lies this share of the range beyond the nadir, so that the ends of the front count as well."""

STEPS = 3
LENGTHS_L = 2.0 ** np.arange(2, -6, -1)
FIRST_LENGTH = 0.1
DIFFERENCE = 1e-6
FRANK_WOLFE_STEPS = 30


def refine(
    costs: Costs, candidates_CN: np.ndarray, count: int, *, box_N2: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """At most ``count`` points [P, N] that dominate much hypervolume, found from candidates of an optimiser.

    In each round, twice ``count`` candidates are chosen and moved onto the front, and ``count`` of them are chosen;
    twice, since some meet on the way and some get dominated. Their offspring join them for the next round.

    With eight objectives and 200 points this at least doubles the hypervolume of NSGA-III's population, which is spread
    by direction and lies behind the front, and evens out its differences from seed to seed to about 1 %.
    """
    for remaining in reversed(range(ROUNDS)):
        moved_CN = descend(costs, _best(costs, candidates_CN, 2 * count, generator), box_N2=box_N2)
        points_PN = _best(costs, moved_CN, count, generator)
        if remaining:
            broods = [offspring(points_PN, box_N2, generator) for _ in range(BROODS)]
            candidates_CN = np.concatenate([moved_CN, *broods])
    return points_PN


def _best(costs: Costs, points_CN: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    costs_CT = costs(points_CN)
    front = np.flatnonzero(non_dominated(costs_CT, maximise=[False] * costs_CT.shape[1]))
    return points_CN[front[choose_by_hypervolume(costs_CT[front], count, generator=generator)]]


def ends(costs: Costs, starts_PN: np.ndarray, *, box_N2: np.ndarray) -> np.ndarray:
    """The best point for each objective alone [T, N]: the best start, improved by L-BFGS-B (Byrd et al., 1995).

    A population spread over many objectives does not reach the ends of the front by itself.
    """
    costs_PT = costs(starts_PN)

    def improved(t: int) -> np.ndarray:
        start_N = starts_PN[costs_PT[:, t].argmin()]
        found_N = minimize(
            lambda c_N: costs(c_N[None])[0, t],
            start_N,
            jac=lambda c_N: _gradients(costs, c_N[None], costs(c_N[None]), box_N2)[0, :, t],
            bounds=box_N2,
            method="L-BFGS-B",
        ).x
        found_N = np.clip(found_N, *box_N2.T)
        return min((start_N, found_N), key=lambda c_N: float(costs(c_N[None])[0, t]))

    return np.stack([improved(t) for t in range(costs_PT.shape[1])])


def choose_by_hypervolume(costs_CT: np.ndarray, count: int, *, generator: np.random.Generator) -> np.ndarray:
    """At most ``count`` of the candidates that together dominate much hypervolume.

    First the best candidate for each objective, so that no end of the front is lost; then greedily the one that adds
    most (Guerreiro, Fonseca and Paquete, 2016: at least 1 - 1/e of the gain of the best choice). Exact hypervolume is
    exponential in T, so it is measured in polar coordinates (Deng and Zhang, 2019): seen from the reference point, the
    volume is the mean over directions λ of max_c (min_t scaled_ct / λ_t)^T.

    Args:
        costs_CT: non-dominated candidates, C >= 1.
        count: how many to choose.
        generator: scrambles the directions.

    Returns:
        Indices [min(count, C)] in the order of choice: the first few of them are a good short list.
    """
    low_T, high_T = costs_CT.min(axis=0), costs_CT.max(axis=0)
    span_T = np.where(high_T > low_T, high_T - low_T, 1.0)
    reach_CT = 1 + MARGIN - (costs_CT - low_T) / span_T  # how far each candidate is from the reference point
    ends = [int(np.lexsort((-reach_CT.sum(axis=1), -reach_C))[0]) for reach_C in reach_CT.T]
    chosen = list(dict.fromkeys(ends))[:count]
    volume_DC = _volumes(reach_CT, _directions(reach_CT.shape[1], 2 * count, generator))
    reached_D = np.zeros(len(volume_DC), dtype=volume_DC.dtype)
    gain_C = volume_DC.sum(axis=0)
    for position in range(min(count, len(costs_CT))):
        if position == len(chosen):
            chosen.append(int(gain_C.argmax()))
        new = chosen[position]
        rows = np.flatnonzero(volume_DC[:, new] > reached_D)
        # only where the new point reaches farthest do the others now add less, by the part between old and new reach
        before, after = reached_D[rows], volume_DC[rows, new]
        gain_C -= np.clip(volume_DC[rows], before[:, None], after[:, None]).sum(axis=0) - before.sum()
        reached_D[rows] = after
        gain_C[new] = -np.inf
    return np.array(chosen)


def _directions(objectives: int, least: int, generator: np.random.Generator) -> np.ndarray:
    """Directions [D, T] spread over the positive part of the unit sphere, D a power of two."""
    from scipy.stats import qmc

    exponent = max(DIRECTIONS_LOG2, (least - 1).bit_length())
    unit = qmc.Sobol(objectives, scramble=True, seed=generator).random_base2(exponent)
    normal = np.maximum(ndtri(0.5 + unit / 2), 1e-9)
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def _volumes(reach_CT: np.ndarray, directions_DT: np.ndarray) -> np.ndarray:
    """(min_t reach / λ_t)^T for every direction and candidate, [D, C], up to a common factor."""
    reach_CT, inverse_DT = reach_CT.astype(np.float32), (1 / directions_DT).astype(np.float32)
    length_DC = np.full((len(inverse_DT), len(reach_CT)), np.inf, dtype=np.float32)
    for reach_C, inverse_D in zip(reach_CT.T, inverse_DT.T, strict=True):
        np.minimum(length_DC, reach_C * inverse_D[:, None], out=length_DC)
    length_DC /= length_DC.max()
    volume_DC = length_DC.copy()
    for _ in range(reach_CT.shape[1] - 1):  # ten times as fast as a power
        volume_DC *= length_DC
    return volume_DC


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
    direction_PN = np.empty(at_lower_PN.shape)
    rows = np.arange(len(free_PN))
    for _ in range(3):
        inward = gradient_PNT[rows] * free_PN[rows, :, None]
        weights = _shortest_in_hull(inward.swapaxes(1, 2) @ inward)
        direction_PN[rows] = -(inward @ weights[:, :, None])[:, :, 0]
        leaving_PN = (at_lower_PN & (direction_PN < 0)) | (at_upper_PN & (direction_PN > 0))
        free_PN &= ~leaving_PN
        rows = np.flatnonzero(leaving_PN.any(axis=1))
        if not len(rows):
            break
    length_P1 = np.linalg.norm(direction_PN, axis=1, keepdims=True)
    return direction_PN / np.where(length_P1 > 0, length_P1, 1.0)


def _shortest_in_hull(gram_PTT: np.ndarray) -> np.ndarray:
    """Weights [P, T] on the simplex that minimise wᵀ G w, by pairwise Frank-Wolfe (Lacoste-Julien and Jaggi, 2015).

    Each step moves weight from the used objective with the steepest slope to the one with the least, as far as pays.
    """
    points = np.arange(len(gram_PTT))
    weights_PT = np.full(gram_PTT.shape[:2], 1.0 / gram_PTT.shape[1])
    for _ in range(FRANK_WOLFE_STEPS):
        slope_PT = (gram_PTT @ weights_PT[:, :, None])[:, :, 0]
        to_P, from_P = slope_PT.argmin(axis=1), np.where(weights_PT > 0, slope_PT, -np.inf).argmax(axis=1)
        drop_P = slope_PT[points, from_P] - slope_PT[points, to_P]
        bend_P = gram_PTT[points, to_P, to_P] + gram_PTT[points, from_P, from_P] - 2 * gram_PTT[points, to_P, from_P]
        step_P = np.minimum(drop_P / np.where(bend_P > 0, bend_P, 1.0), weights_PT[points, from_P])
        weights_PT[points, to_P] += step_P
        weights_PT[points, from_P] -= step_P
    return weights_PT
