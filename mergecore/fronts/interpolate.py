"""Scaling coefficients for any preference, from the points of a front.

Shape suffixes: P points, T objectives, N models, V corners of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from mergecore.fronts.choose import by_preference

STEPS = 20
"""Along each edge of the simplex; as many times more that the equal preference is on the grid too."""

SNAP = 1e-9
"""What a preference may miss a line of the grid by, in its steps, to count as on it."""


def interpolated_coefficients(
    preference_T: np.ndarray,
    *,
    coefficients_PN: np.ndarray,
    metrics_PT: ArrayLike,
    maximise: Sequence[bool],
    scale: Literal["none", "range"] = "none",
) -> np.ndarray:
    """Coefficients [N] for one preference: linear between the points that `by_preference` finds on a simplex grid.

    A preference in whole steps of the grid, so every one in twentieths and the equal one, gets the very point that it
    prefers, to the bit. Between them the coefficients are a mean, with barycentric weights, of those of the at most T
    grid preferences around it. So they change continuously with the preference, though the preferred point jumps; they
    never leave the convex hull of the front's coefficients; and where all grid preferences around agree on one point,
    they are that point's. Between points the merge itself is new: it has the metrics of neither, and nobody measured
    it.

    Args:
        preference_T: not negative, sums to 1.
        coefficients_PN: of the front's points.
        metrics_PT: of the front's points.
        maximise: for each objective, whether more is better.
        scale: of `by_preference`.

    Raises:
        InputError: as for `by_preference`.
    """
    corners_VT, weights_V = simplex_cell(preference_T, math.lcm(STEPS, len(maximise)))
    rows = [by_preference(metrics_PT, weights=corner, maximise=maximise, scale=scale) for corner in corners_VT]
    found: np.ndarray = coefficients_PN[rows[0]].copy() if len(set(rows)) == 1 else weights_V @ coefficients_PN[rows]
    return found


def simplex_cell(preference_T: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners [V, T] of the cell of a simplex grid that holds a preference, and its barycentric weights [V] there.

    The cells are those of Freudenthal's triangulation (1942) in the running sums of the entries: at most T corners, of
    positive weight, found by one sort. For three and more objectives it depends on their order which of the equally
    near corners are meant.

    Args:
        preference_T: not negative, sums to 1.
        steps: of the grid along each edge.

    >>> corners, weights = simplex_cell(np.array([0.625, 0.375]), 4)
    >>> corners.tolist(), weights.tolist()
    ([[0.5, 0.5], [0.75, 0.25]], [0.5, 0.5])
    """
    sums_S = np.clip(steps * np.cumsum(preference_T)[:-1], 0, steps)  # S = T - 1
    nearest_S = np.rint(sums_S)
    sums_S = np.where(np.abs(sums_S - nearest_S) < SNAP, nearest_S, sums_S)
    floor_S = np.floor(sums_S)
    rest_S = sums_S - floor_S
    order = np.argsort(-rest_S, kind="stable")
    # the corners, from the lowest: the sums rise by a step one after the other, the largest remainder first
    raised_VS = np.vstack([np.zeros(len(order)), np.tril(np.ones((len(order), len(order))))])[:, np.argsort(order)]
    weights_V = -np.diff(np.concatenate([[1.0], rest_S[order], [0.0]]))
    edges = np.zeros((len(weights_V), 1)), np.full((len(weights_V), 1), float(steps))
    corners_VT = np.diff(np.hstack([edges[0], floor_S + raised_VS, edges[1]]), axis=1) / steps
    used_V = weights_V > 0
    return corners_VT[used_V], weights_V[used_V]
