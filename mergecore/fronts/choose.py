"""Choose one point of a front: by preference, by constraints, or the knee.

Rows with NaN or infinity are ignored; of equal choices the first is returned. Shape suffixes: P points, T objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from mergecore.errors import InputError
from mergecore.fronts.dominance import to_minimise


def by_preference(
    metrics_PT: ArrayLike,
    *,
    weights: ArrayLike,
    maximise: Sequence[bool],
    scale: Literal["none", "range"] = "none",
) -> int:
    """The row with the best preference-weighted sum Σ_t r_t M_t; metrics to minimise count negatively.

    Args:
        metrics_PT: the front.
        weights: r [T], not negative and not all zero; need not sum to 1.
        maximise: for each objective, whether more is better.
        scale: "none" adds the metrics as they are, as MAP does with accuracies. "range" first scales each objective to
            [0, 1] over the front: for metrics in different units.

    Raises:
        InputError: unusable weights, unknown scale, shapes that do not fit, or no complete row.

    >>> by_preference([[0.9, 0.1], [0.6, 0.6], [0.1, 0.9]], weights=[0.5, 0.5], maximise=[True, True])
    1
    """
    rows, costs_PT = _usable(metrics_PT, maximise)
    weights_T = np.asarray(weights, dtype=np.float64)
    if weights_T.shape != (len(maximise),) or not (np.isfinite(weights_T).all() and (weights_T >= 0).all()):
        raise InputError(f"Preferences {weights_T.tolist()} are not {len(maximise)} weights of zero or more.")
    if not weights_T.any():
        raise InputError("All preferences are zero.", "Give at least one objective a positive weight.")
    if scale not in ("none", "range"):
        raise InputError(f"Unknown scale {scale!r}.", "Use 'none' or 'range'.")
    if scale == "range":
        costs_PT = _to_unit(costs_PT)
    return int(rows[(costs_PT @ weights_T).argmin()])


def by_constraints(metrics_PT: ArrayLike, *, at_least: Mapping[int, float], best: int, maximise: Sequence[bool]) -> int:
    """The row that is best on one objective among those at least as good as required on others.

    Args:
        metrics_PT: the front.
        at_least: objective to its required value; a metric to minimise must not exceed it.
        best: the objective to do best on.
        maximise: for each objective, whether more is better.

    Raises:
        InputError: no row meets the requirements (the message names what is reachable), an objective that does not
            exist, shapes that do not fit, or no complete row.

    >>> by_constraints([[0.9, 0.1], [0.6, 0.6], [0.5, 0.7]], at_least={1: 0.5}, best=0, maximise=[True, True])
    1
    """
    rows, costs_PT = _usable(metrics_PT, maximise)
    for objective in (best, *at_least):
        if not 0 <= objective < len(maximise):
            raise InputError(f"There is no objective {objective}.", f"They are numbered 0 to {len(maximise) - 1}.")
    sign_T = np.where(maximise, -1.0, 1.0)
    required = {t: sign_T[t] * value for t, value in at_least.items()}
    meets = {t: costs_PT[:, t] <= cost for t, cost in required.items()}
    feasible = np.flatnonzero(np.all([np.ones(len(rows), dtype=bool), *meets.values()], axis=0))
    if not len(feasible):
        reachable = "; ".join(_reachable(costs_PT, t, meets, sign_T) for t in required)
        raise InputError("No point of the front meets all requirements.", f"Reachable: {reachable}.")
    # among equals on `best`, the one that is best overall
    costs = costs_PT[feasible]
    return int(rows[feasible[np.lexsort((_to_unit(costs_PT)[feasible].sum(axis=1), costs[:, best]))[0]]])


def knee(metrics_PT: ArrayLike, *, maximise: Sequence[bool]) -> int:
    """The row nearest to the ideal point when each objective is scaled to [0, 1] over the front.

    The compromise solution of Zeleny (1973) in the Euclidean norm. It needs no weights and, unlike the farthest point
    from the plane through the extremes (Das, 1999), is defined for any number of points and objectives.

    Raises:
        InputError: shapes that do not fit, or no complete row.

    >>> knee([[1.0, 0.0], [0.8, 0.8], [0.0, 1.0]], maximise=[True, True])
    1
    """
    rows, costs_PT = _usable(metrics_PT, maximise)
    return int(rows[(_to_unit(costs_PT) ** 2).sum(axis=1).argmin()])


def _usable(metrics_PT: ArrayLike, maximise: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the complete rows, and their costs."""
    costs_PT = to_minimise(metrics_PT, maximise=maximise)
    rows = np.flatnonzero(np.isfinite(costs_PT).all(axis=1))
    if not len(rows):
        raise InputError("No point of this front has all its metrics.", "Evaluate its points first.")
    return rows, costs_PT[rows]


def _to_unit(costs_PT: np.ndarray) -> np.ndarray:
    span_T = np.ptp(costs_PT, axis=0)
    return (costs_PT - costs_PT.min(axis=0)) / np.where(span_T > 0, span_T, 1.0)


def _reachable(costs_PT: np.ndarray, objective: int, meets: Mapping[int, np.ndarray], sign_T: np.ndarray) -> str:
    """The best value of one objective: while all others are met if they can be, else by itself."""
    others = np.all([np.ones(len(costs_PT), dtype=bool), *(m for t, m in meets.items() if t != objective)], axis=0)
    given = " with the others met" if len(meets) > 1 and others.any() else ""
    best = sign_T[objective] * costs_PT[others if others.any() else slice(None), objective].min()
    return f"{best:.4g} on objective {objective}{given}"
