"""How the losses of T tasks become one step: weights of their gradients.

Shape suffix: T tasks.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from scipy.optimize import linprog, nnls

from mergecore.errors import NumericalError
from mergecore.registry import Registry

BALANCED = 1e-4
"""Non-uniformity below which exact Pareto search descends (the authors' epsilon)."""
LEAST_SQUARES_STEPS = 100
"""Of each task; gradients of very different lengths take more than scipy's 3."""


class Scalarisation(ABC):
    """A rule for one training; it may count.

    Class attributes:
        needs_gradients: whether it looks at the inner products of the tasks' gradients.

    Attributes:
        fallbacks: how often a linear programme had no solution and linear scalarisation stood in.
    """

    needs_gradients: ClassVar[bool] = True

    def __init__(self) -> None:
        self.fallbacks = 0

    @abstractmethod
    def weights(self, losses_T: np.ndarray, preference_T: np.ndarray, gram_TT: np.ndarray | None) -> np.ndarray:
        """The weights [T], on the simplex, of the sum of losses that the step descends.

        Args:
            losses_T: not negative.
            preference_T: r, on the simplex.
            gram_TT: inner products of the tasks' gradients; may be None where `needs_gradients` is False.

        Raises:
            NumericalError: a loss or an inner product is not finite, or a loss is negative where that has no meaning.
        """


class LinearScalarisation(Scalarisation):
    """The preference itself: the step descends Σ r_t l_t, and reaches the convex part of a front."""

    needs_gradients: ClassVar[bool] = False

    def weights(self, losses_T: np.ndarray, preference_T: np.ndarray, gram_TT: np.ndarray | None) -> np.ndarray:
        """r."""
        _require_finite(losses_T)
        return np.asarray(preference_T, dtype=np.float64)


class ExactPareto(Scalarisation):
    """Exact Pareto optimal search (Mahapatra and Rajan, ICML 2020), by their linear programme.

    While the losses are not in the preference's proportions, r_t l_t all equal, the step balances them; where they are,
    it descends. Where the programme has no solution, linear scalarisation stands in, is counted, and is warned of once.
    """

    def weights(self, losses_T: np.ndarray, preference_T: np.ndarray, gram_TT: np.ndarray | None) -> np.ndarray:
        """The solution of the programme."""
        assert gram_TT is not None
        _require_finite(losses_T, gram_TT)
        if (np.asarray(losses_T) < 0).any():
            raise NumericalError("Exact Pareto search is about proportions of losses, but a loss is negative.")
        found_T = exact_pareto_weights(losses_T, preference_T, gram_TT)
        if found_T is not None:
            return found_T
        if not self.fallbacks:
            warnings.warn("Exact Pareto search had no solution; linear scalarisation stands in.", stacklevel=2)
        self.fallbacks += 1
        return np.asarray(preference_T, dtype=np.float64)


class MinNorm(Scalarisation):
    """MGDA (Désidéri 2012; Sener and Koltun 2018): the shortest vector in the gradients' hull; no preference."""

    def weights(self, losses_T: np.ndarray, preference_T: np.ndarray, gram_TT: np.ndarray | None) -> np.ndarray:
        """Weights of that vector."""
        assert gram_TT is not None
        _require_finite(losses_T, gram_TT)
        return min_norm_weights(gram_TT)


SCALARISATIONS = Registry(
    "scalarisation",
    {
        "ls": "mergecore.pareto_moe.scalarisation:LinearScalarisation",
        "epo": "mergecore.pareto_moe.scalarisation:ExactPareto",
        "mgda": "mergecore.pareto_moe.scalarisation:MinNorm",
    },
)
"""Each entry is a `Scalarisation`; adding one is a class and a line here."""


def non_uniformity(losses_T: np.ndarray, preference_T: np.ndarray) -> float:
    """mu: Kullback-Leibler divergence of the normalised r_t l_t from the uniform distribution, in nats.

    >>> non_uniformity(np.array([2.0, 1.0]), np.array([1 / 3, 2 / 3]))
    0.0
    """
    share_T = _shares(losses_T, preference_T)
    kept = share_T[share_T > 0]
    return float((kept * np.log(len(share_T) * kept)).sum())


def exact_pareto_weights(losses_T: np.ndarray, preference_T: np.ndarray, gram_TT: np.ndarray) -> np.ndarray | None:
    """The linear programme of exact Pareto search; None when it has no solution.

    With l̂ the normalised r ⊙ l, mu its non-uniformity, a_t = r_t (log(T l̂_t) - mu) and C the inner products, it is over
    α on the simplex. While mu > epsilon it balances: most α · C a, the worst of r ⊙ l not rising, the others no faster
    than balance alone would raise them, or not at all where it lowers none. Otherwise it descends: most Σ C α, no loss
    rising, and the balance kept.
    """
    share_T, tasks = _shares(losses_T, preference_T), len(losses_T)
    mu = non_uniformity(losses_T, preference_T)
    logs_T = np.log(tasks * np.where(share_T > 0, share_T, 1 / tasks))
    a_T = np.where(share_T > 0, np.asarray(preference_T) * (logs_T - mu), 0.0)
    c_TT = np.asarray(gram_TT, dtype=np.float64) / max(float(np.abs(gram_TT).max()), np.finfo(np.float64).tiny)
    balance_T = c_TT @ a_T
    if mu > BALANCED:
        gain_T, floor_T = balance_T, np.zeros(tasks)
        if (balance_T > 0).any():
            floor_T = np.where(balance_T > 0, -np.inf, balance_T)
            floor_T[share_T == share_T.max()] = 0.0
        rows_RT, floor_R = c_TT, floor_T
    else:
        gain_T = c_TT.sum(axis=0)
        rows_RT = np.vstack([c_TT, balance_T])
        floor_R = np.append(np.zeros(tasks), min(0.0, float(balance_T.max())))
    bounded = np.isfinite(floor_R)
    found = linprog(
        -gain_T,
        A_ub=-rows_RT[bounded],
        b_ub=-floor_R[bounded],
        A_eq=np.ones((1, tasks)),
        b_eq=[1.0],
        bounds=(0.0, 1.0),
        method="highs",
    )
    if found.status != 0 or not np.isfinite(found.x).all():
        return None
    weights_T = np.maximum(found.x, 0.0)
    return np.asarray(weights_T / weights_T.sum())


def min_norm_weights(gram_TT: np.ndarray) -> np.ndarray:
    """Weights w on the simplex with the least wᵀ G w, exactly, by non-negative least squares (Lawson and Hanson, 1974).

    With G = BᵀB, the u >= 0 of the least |B u|² + (1ᵀu - 1)² is a multiple of w: of u = s w the best s leaves
    q / (1 + q), which grows with q = wᵀ G w.
    """
    g_TT = np.asarray(gram_TT, dtype=np.float64)
    g_TT = g_TT / max(float(np.abs(g_TT).max()), np.finfo(np.float64).tiny)
    values_T, vectors_TT = np.linalg.eigh(g_TT)
    b_TT = np.sqrt(np.maximum(values_T, 0.0))[:, None] * vectors_TT.T
    tasks = len(g_TT)
    wanted = np.append(np.zeros(tasks), 1.0)
    u_T, _ = nnls(np.vstack([b_TT, np.ones(tasks)]), wanted, maxiter=LEAST_SQUARES_STEPS * tasks)
    return np.asarray(u_T / u_T.sum())


def _shares(losses_T: np.ndarray, preference_T: np.ndarray) -> np.ndarray:
    """r ⊙ l as shares of their sum; equal where all are zero."""
    weighted_T = np.asarray(losses_T, dtype=np.float64) * np.asarray(preference_T, dtype=np.float64)
    total = weighted_T.sum()
    return weighted_T / total if total > 0 else np.full(len(weighted_T), 1 / len(weighted_T))


def _require_finite(*values: np.ndarray) -> None:
    if not all(np.isfinite(value).all() for value in values):
        raise NumericalError("A loss or a gradient of the training is not finite.")
