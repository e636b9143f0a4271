"""Preference vectors: rays over the simplex to look at, and what a preference must be.

Shape suffixes: R preferences, T tasks.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike

from mergecore.errors import InputError

TOLERANCE = 1e-6
"""What the entries of a preference may miss 1 by."""


def rays(count: int, tasks: int, *, seed: int) -> np.ndarray:
    """Preference vectors that cover the simplex, [R, T].

    A simplex grid where there is one of so many points (any number for two tasks; 3, 6, 10, … 66 for three). Otherwise
    the equal preference, the T unit vectors, then draws from Dirichlet(1).

    Args:
        count: R, from 1.
        tasks: T.
        seed: of the draws.

    >>> rays(3, 2, seed=0).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    steps = next((s for s in range(1, count) if math.comb(s + tasks - 1, tasks - 1) >= count), 0)
    if steps and math.comb(steps + tasks - 1, tasks - 1) == count and (tasks <= 3 or steps > 1):
        return simplex_grid(steps, tasks)
    fixed_RT = np.vstack([np.full(tasks, 1 / tasks), np.eye(tasks)])[:count]
    drawn_RT = np.random.default_rng([seed, tasks]).dirichlet(np.ones(tasks), size=count - len(fixed_RT))
    return np.vstack([fixed_RT, drawn_RT])


def simplex_grid(steps: int, tasks: int) -> np.ndarray:
    """All preferences whose entries are multiples of 1/steps: [comb(steps + T - 1, T - 1), T].

    >>> len(simplex_grid(10, 3))
    66
    """
    bars = itertools.combinations(range(steps + tasks - 1), tasks - 1)
    places = np.array([[-1, *found, steps + tasks - 1] for found in bars])
    return (np.diff(places, axis=1) - 1)[::-1] / steps


def checked_preference(preference: ArrayLike, tasks: int) -> np.ndarray:
    """The preference as float64 [T].

    Raises:
        InputError: a wrong length, an entry that is negative or not finite, or a sum that is not 1.
    """
    r_T = np.asarray(preference, dtype=np.float64)
    if r_T.shape != (tasks,):
        raise InputError(f"A preference of shape {list(r_T.shape)} for {tasks} tasks.", "Give one number a task.")
    if not np.isfinite(r_T).all() or (r_T < 0).any():
        raise InputError(f"The preference {r_T.tolist()} has an entry that is negative or not finite.")
    if abs(r_T.sum() - 1) > TOLERANCE:
        raise InputError(f"The entries of the preference {r_T.tolist()} sum to {r_T.sum():.6g}, not to 1.")
    return r_T
