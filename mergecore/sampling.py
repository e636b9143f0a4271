"""Scaling coefficients to evaluate: samplers over a box.

Shape suffixes: K candidates, N models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from mergecore.errors import InputError
from mergecore.registry import did_you_mean

Sampler = Callable[[int, int, np.random.Generator], np.ndarray]


def sample(sampler: str, count: int, *, box: ArrayLike, seed: int, anchors: bool = True) -> np.ndarray:
    """Draw the coefficient vectors of a search.

    Args:
        sampler: "uniform", "sobol" (scrambled Sobol sequence: covers the box more evenly than independent draws) or
            "simplex" (see `_simplex`).
        count: K, the number of vectors, anchors included.
        box: [N, 2], finite lower and upper bound of each model's coefficient.
        seed: the same seed gives the same points in every process.
        anchors: put the base (c = 0) and the N single models (one-hot) first, each only if it lies in the box. They
            are left out when they would take more than half of the budget, that is for K < 2 (N + 1).

    Returns:
        coefficients_KN, in the box.

    Raises:
        InputError: unknown sampler, K < 1, or a box that is not [N, 2], not finite or empty on a side.

    >>> sample("sobol", 6, box=[(0, 1), (0, 1)], seed=0)[:3]
    array([[0., 0.],
           [1., 0.],
           [0., 1.]])
    """
    if sampler not in SAMPLERS:
        raise InputError(f"Unknown sampler {sampler!r}.", did_you_mean(sampler, SAMPLERS))
    if count < 1:
        raise InputError(f"{count} samples leave nothing to evaluate.", "Ask for at least one.")
    box_N2 = checked_box(box)
    lower_N, upper_N = box_N2.T
    fixed_KN = _anchors(box_N2) if anchors and count >= 2 * (len(box_N2) + 1) else np.empty((0, len(box_N2)))
    unit_KN = SAMPLERS[sampler](count - len(fixed_KN), len(box_N2), np.random.default_rng(seed))
    # lower + (upper - lower) may round to just past upper
    drawn_KN = np.clip(lower_N + unit_KN * (upper_N - lower_N), lower_N, upper_N)
    return np.concatenate([fixed_KN, drawn_KN])


REACH = (0.2, 1.4)
"""Sums of the coefficients in `near_models`: from close to the base to a little past the models."""


def near_models(count: int, *, models: int, seed: int) -> np.ndarray:
    """Coefficient vectors around the convex hull of base and models, where a merge of few samples is seldom bad.

    Shares of the models are uniform over the simplex, and the coefficients' sums even over ``REACH``, both from one
    scrambled Sobol sequence. A box draws sums around N / 2 instead, which past a few models is far outside of the hull.

    Args:
        count: K.
        models: N.
        seed: the same seed gives the same points in every process.

    Returns:
        coefficients_KN, none below 0.

    >>> near_models(4, models=2, seed=0).sum(axis=1).round(2)
    array([1.25, 0.65, 0.95, 0.35])
    """
    unit_KM = _sobol(count, models + 1, np.random.default_rng(seed))
    parts_KN = -np.log1p(-unit_KM[:, :models])  # exponential, so that their shares are uniform over the simplex
    low, high = REACH
    places_K = (np.argsort(np.argsort(unit_KM[:, models])) + 0.5) / count
    sums_K = low + (high - low) * places_K
    return np.asarray(parts_KN / parts_KN.sum(axis=1, keepdims=True) * sums_K[:, None])


def checked_box(box: ArrayLike | Sequence[Sequence[float]]) -> np.ndarray:
    """The box as float64 [N, 2]; ``InputError`` unless each of its N >= 1 sides is finite with lower < upper."""
    box_N2 = np.asarray(box, dtype=np.float64)
    if box_N2.ndim != 2 or box_N2.shape[1] != 2 or not len(box_N2):
        raise InputError(
            f"A box of coefficients has shape [models, 2], not {list(box_N2.shape)}.", "Give a [lower, upper] a model."
        )
    bad = ~(np.isfinite(box_N2).all(axis=1) & (box_N2[:, 0] < box_N2[:, 1]))
    if bad.any():
        n = int(bad.argmax())
        raise InputError(
            f"The box of model {n} is {box_N2[n].tolist()}.", "Give finite bounds, the lower below the upper."
        )
    return box_N2


def single_models(box_N2: np.ndarray) -> np.ndarray:
    """The single models (one-hot) that lie in the box, [M, N].

    >>> single_models(np.array([[0.0, 1.0], [0.0, 0.5]]))
    array([[1., 0.]])
    """
    return _inside(np.eye(len(box_N2)), box_N2)


def _anchors(box_N2: np.ndarray) -> np.ndarray:
    return np.concatenate([_inside(np.zeros((1, len(box_N2))), box_N2), single_models(box_N2)])


def _inside(points_KN: np.ndarray, box_N2: np.ndarray) -> np.ndarray:
    return points_KN[((points_KN >= box_N2[:, 0]) & (points_KN <= box_N2[:, 1])).all(axis=1)]


def _uniform(count: int, models: int, generator: np.random.Generator) -> np.ndarray:
    return generator.random((count, models))


def _sobol(count: int, models: int, generator: np.random.Generator) -> np.ndarray:
    """The first ``count`` points of an Owen-scrambled Sobol sequence (Owen, 1998)."""
    from scipy.stats import qmc  # a second to import, which `check` and workers do without

    if not count:
        return np.empty((0, models))
    # the sequence is balanced at powers of two, and a prefix of one stays well spread
    return qmc.Sobol(models, scramble=True, seed=generator).random_base2((count - 1).bit_length())[:count]


def _simplex(count: int, models: int, generator: np.random.Generator) -> np.ndarray:
    """Dirichlet(1) weights w, uniform on {w >= 0, sum w = 1}, scaled into the box: c = lower + w (upper - lower).

    In the box [0, 1]^N these are the convex combinations of the single models. The points lie in an (N-1)-dimensional
    plane, so a quadratic fitted to them alone says nothing about the rest of the box.
    """
    return generator.dirichlet(np.ones(models), size=count)


SAMPLERS: dict[str, Sampler] = {"uniform": _uniform, "sobol": _sobol, "simplex": _simplex}
