"""Pareto dominance with mixed directions.

Shape suffixes: K candidates, T objectives.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike

from mergecore.errors import InputError


def to_minimise(metrics_KT: ArrayLike, *, maximise: Sequence[bool]) -> np.ndarray:
    """The metrics as costs, a new float64 array: objectives to maximise change sign, here and nowhere else.

    NaN stays NaN. Negative zeros become zeros, so that equal metrics are equal to the bit.

    Raises:
        InputError: the metrics are not [K, T] with one direction for each of T >= 1 objectives.
    """
    metrics_KT = np.asarray(metrics_KT, dtype=np.float64)
    if metrics_KT.ndim != 2 or metrics_KT.shape[1] != len(maximise) or not len(maximise):
        raise InputError(
            f"Metrics of shape {list(metrics_KT.shape)} do not go with {len(maximise)} directions.",
            "Give metrics [K, T] and one direction for each objective.",
        )
    return metrics_KT * np.where(maximise, -1.0, 1.0) + 0.0


def non_dominated(metrics_KT: ArrayLike, *, maximise: Sequence[bool]) -> np.ndarray:
    """Which candidates are on the Pareto front: no other one is as good everywhere and better somewhere.

    MAP, Definition 1. Of equal rows only the first is on the front. A row with NaN or infinity is never on it and
    dominates nothing.

    Args:
        metrics_KT: one row a candidate; K = 0 is fine.
        maximise: for each objective, whether more is better.

    Returns:
        Mask [K].

    Raises:
        InputError: see `to_minimise`.

    >>> non_dominated([[0.9, 0.1], [0.5, 0.5], [0.4, 0.5], [0.9, 0.1]], maximise=[True, True])
    array([ True,  True, False, False])
    """
    costs_KT = to_minimise(metrics_KT, maximise=maximise)
    mask_K = np.isfinite(costs_KT).all(axis=1)
    if mask_K.any():
        mask_K[mask_K] = moocore.is_nondominated(costs_KT[mask_K], keep_weakly=False)
    return mask_K
