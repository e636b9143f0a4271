"""The k-th largest magnitude of a task vector that is larger than memory: exact, in two passes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

TILE = 1 << 18  # elements read at a time


def magnitude_threshold(vector_P: torch.Tensor, keep: float, *, count: int | None = None) -> float:
    """The magnitude that the largest floor(keep · count) elements reach, at least one element.

    Args:
        vector_P: task vector, memory-mapped or not; zeros that pad it count as elements only through ``count``.
        keep: share to keep, in (0, 1].
        count: number of elements that the share is taken of; default: all of them.

    Returns:
        The threshold; 0 when everything is kept.
    """
    total = len(vector_P) if count is None else count
    wanted = max(1, int(keep * total + 1e-9))
    return 0.0 if wanted >= total else kth_largest_magnitude(vector_P, wanted)


def kth_largest_magnitude(vector_P: torch.Tensor, k: int) -> float:
    """The k-th largest magnitude, k = 1 the largest; exact, in two passes, a tile in memory at a time.

    The bits of a non-negative float32, read as an integer, are in the order of the floats; so it is found by counting
    the upper 16 bits, then the lower 16 of those that share its upper ones.

    Args:
        vector_P: of any floating dtype, without NaN.
        k: 1 … P.
    """
    upper, lower = torch.zeros(1 << 16, dtype=torch.int64), torch.zeros(1 << 16, dtype=torch.int64)
    for bits in _bits(vector_P):
        upper += torch.bincount(bits >> 16, minlength=1 << 16)
    high, above = _kth(upper, k)
    for bits in _bits(vector_P):
        lower += torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low, _ = _kth(lower, k - above)
    return float(torch.tensor((high << 16) | low, dtype=torch.int32).view(torch.float32))


def _bits(vector_P: torch.Tensor) -> Iterable[torch.Tensor]:
    for start in range(0, len(vector_P), TILE):
        yield vector_P[start : start + TILE].to(torch.float32).abs().view(torch.int32)


def _kth(counts: torch.Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the ``wanted``-th largest element, and how many elements lie above the bin."""
    from_top = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, wanted))
    above = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, above
