"""The last steps of an optimiser's run: which points to keep, and how far each is from the front.

All costs are minimised. Shape suffixes: C candidates, S sample points, P points, N models, T objectives, L step lengths.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import qmc

Costs = Callable[[np.ndarray], np.ndarray]

SAMPLES = 4096
MARGIN = 0.1
"""The reference point lies this share of the range beyond the nadir, so that the ends of the front count as well."""

LENGTHS = 2.0 ** np.arange(2, -6, -1)
DIFFERENCE = 1e-6
"""Step of the finite differences, as a share of the box."""

FRANK_WOLFE_STEPS = 20


def choose_by_hypervolume(costs_CT: np.ndarray, count: int, *, generator: np.random.Generator) -> np.ndarray:
    """At most ``count`` of the non-dominated candidates that together dominate much hypervolume.

    First the best candidate for each objective, so that no end of the front is lost, then greedily by what each adds;
    greedy choice reaches at least 1 - 1/e of the best subset's gain (Guerreiro, Fonseca and Paquete, 2016). The
    volume is measured on Sobol points in the union of the dominated boxes (Karp and Luby, 1983): exact hypervolume is
    exponential in T.

    Returns:
        Indices in the order of choice: any first few of them are a good short list.
    """
    low_T, high_T = costs_CT.min(axis=0), costs_CT.max(axis=0)
    scaled_CT = (costs_CT - low_T) / np.where(high_T > low_T, high_T - low_T, 1.0)
    best = np.lexsort((scaled_CT.sum(axis=1)[None].repeat(scaled_CT.shape[1], axis=0).T, scaled_CT), axis=0)[0]
    chosen = list(dict.fromkeys(best.tolist()))[:count]
    sample_ST, weight_S = _points_in_union(scaled_CT, generator)
    covers_SC = np.ones((len(sample_ST), len(scaled_CT)), dtype=bool)
    for sample_S, scaled_C in zip(sample_ST.T, scaled_CT.T, strict=True):
        covers_SC &= scaled_C <= sample_S[:, None]
    weight_S = weight_S / covers_SC.sum(axis=1)
    gain_C = np.zeros(len(scaled_CT))
    for rows in np.array_split(np.arange(len(sample_ST)), 16):  # the product needs a float copy of its factor
        gain_C += weight_S[rows] @ covers_SC[rows]
    open_S = np.ones(len(sample_ST), dtype=bool)
    ...
    return np.array(chosen)
