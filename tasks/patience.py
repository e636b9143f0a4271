"""How long one piece of work may take before its worker counts as hung."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from typing import Literal

ENOUGH = 5
"""Pieces of work of a kind that tell how long they take."""
TIMES = 20
"""The longest of them: a worker's first one reads its models and data."""
LEAST_SECONDS = 600
"""A file system may stall for minutes."""


class Patience:
    """A limit for each kind of work, which is what takes about as long: given, none, or learned from what was done.

    Args:
        minutes: the limit; None for none; "auto" for `TIMES` the longest so far and at least `LEAST_SECONDS`, once
            `ENOUGH` were done.
    """

    def __init__(self, minutes: float | Literal["auto"] | None) -> None:
        self._minutes = minutes
        self._done: Counter[Hashable] = Counter()
        self._longest: dict[Hashable, float] = {}

    def observe(self, kind: Hashable, seconds: float) -> None:
        """A piece of work of this kind was done in so many seconds."""
        self._done[kind] += 1
        self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))

    def seconds(self, kind: Hashable) -> float:
        """The limit; inf where there is none."""
        if self._minutes is None:
            return math.inf
        if self._minutes != "auto":
            return 60 * self._minutes
        if self._done[kind] < ENOUGH:
            return math.inf
        return max(LEAST_SECONDS, TIMES * self._longest[kind])
