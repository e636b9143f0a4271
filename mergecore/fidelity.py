"""Cheaper evaluations: every candidate is measured on a part of the data, those near the front on all of it.

One step of successive halving (Jamieson & Talwalkar, 2016) in each round of a search. The part is the same for all
candidates, so that most of its luck is common to them, and those that are measured on both show how much that is.

Shape suffixes: K candidates, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mergecore.fronts.dominance import non_dominated, to_minimise
from mergecore.search.base import Objectives

ENOUGH = 3
"""Differences that a standard deviation takes."""


def grown_count(candidates: int, grow: float) -> int:
    """How many of so many candidates are measured on all data: the share ``grow``, rounded, at least one of them."""
    return min(candidates, max(1, math.floor(grow * candidates + 0.5)))


def nearest_front(metrics_KT: np.ndarray, noise_KT: np.ndarray, count: int, *, maximise: Sequence[bool]) -> np.ndarray:
    """The candidates that lie nearest to the front of them all.

    Each has the benefit of the doubt: its metrics are taken as better by their standard error. First comes the
    non-dominated rank; among equals, by how much every metric would have to improve until no other candidate beat them
    all, in shares of each metric's range. For a candidate on the front that is negative: how far it is ahead.

    Args:
        metrics_KT: one row a candidate; rows with NaN are never chosen.
        noise_KT: standard errors, NaN where unknown, which is no doubt.
        count: how many, at most.
        maximise: direction of each metric.

    Returns:
        Their indices, ascending.
    """
    usable = np.flatnonzero(np.isfinite(metrics_KT).all(axis=1))
    gains = -to_minimise(metrics_KT[usable], maximise=maximise)
    hopes = gains + np.nan_to_num(noise_KT[usable], nan=0.0)
    if len(usable) > 1:
        span = np.ptp(gains, axis=0)
        scale = np.where(span > 0, span, 1.0)
        ahead = ((gains[None] - hopes[:, None]) / scale).min(axis=2)  # by how much column j beats row k everywhere
        np.fill_diagonal(ahead, -np.inf)
        behind = ahead.max(axis=1)
    else:
        behind = np.zeros(len(usable))
    order = np.lexsort((behind, _ranks(hopes)))
    return np.sort(usable[order[:count]])


def _ranks(gains_KT: np.ndarray) -> np.ndarray:
    """0 for the front, 1 for the front of the rest, and so on."""
    ranks, left, rank = np.zeros(len(gains_KT), dtype=int), np.arange(len(gains_KT)), 0
    while len(left):
        front = non_dominated(gains_KT[left], maximise=[True] * gains_KT.shape[1])
        ranks[left[front]] = rank
        left, rank = left[~front], rank + 1
    return ranks


class Correction:
    """What metrics on the part say of those on all data, learned from the candidates that were measured on both.

    Args:
        share_T: the part's share of each task's examples.
        objectives: whose ranges an estimate does not leave.
    """

    def __init__(self, share_T: np.ndarray, objectives: Objectives) -> None:
        self._share_T = share_T
        self._lower_T = np.array([-np.inf if bound is None else bound for bound in objectives.lower])
        self._upper_T = np.array([np.inf if bound is None else bound for bound in objectives.upper])
        self._differences_KT = np.empty((0, len(share_T)))

    def learn(self, part_KT: np.ndarray, whole_KT: np.ndarray) -> None:
        """Take in metrics of the same candidates on the part and on all data; NaN tells nothing."""
        self._differences_KT = np.vstack([self._differences_KT, whole_KT - part_KT])

    def estimate(self, part_KT: np.ndarray, noise_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metrics on all data, estimated, and their standard errors; NaN where a metric or all noise is unknown.

        A metric is the part's and the mean difference. Its error is that of a metric on all data, and beside it the
        standard deviation of the differences. Before there are `ENOUGH`, it is the part's own, which is larger than
        that of all data by 1 / sqrt(share).
        """
        finite_KT = np.isfinite(self._differences_KT)
        number_T = finite_KT.sum(axis=0)
        differences_KT = np.where(finite_KT, self._differences_KT, 0.0)
        mean_T = differences_KT.sum(axis=0) / np.maximum(number_T, 1)
        squares_T = (np.where(finite_KT, differences_KT - mean_T, 0.0) ** 2).sum(axis=0)
        variance_T = squares_T / np.maximum(number_T - 1, 1)
        learned_KT = np.sqrt(np.nan_to_num(noise_KT) ** 2 * self._share_T + variance_T)
        metrics_KT = np.clip(part_KT + mean_T, self._lower_T, self._upper_T)
        return metrics_KT, np.where(number_T >= ENOUGH, learned_KT, noise_KT)
