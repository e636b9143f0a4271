"""Which examples a limit leaves, drawn by a seed."""

from __future__ import annotations

import numpy as np


def stratified(y_n: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Indices of a draw of ``limit`` examples that keeps the classes' proportions, in their order; None takes all."""
    if limit is None or limit >= len(y_n):
        return np.arange(len(y_n))
    order = np.random.default_rng(seed).permutation(len(y_n))
    # within each class the k-th drawn example has rank k / (class size): the smallest ranks are a stratified draw
    classes = y_n[order]
    rank = np.empty(len(y_n))
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(rank, kind="stable")[:limit]])


def uniform(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Indices of a draw of ``limit`` out of ``count`` unlabelled examples, in their order; None takes all."""
    return stratified(np.zeros(count, dtype=np.int64), limit, seed)
