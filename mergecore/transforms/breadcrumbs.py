"""Model breadcrumbs (Davari and Belilovsky, ECCV 2024): drop both the small elements and the outliers of each layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator

from mergecore.options import PluginOptions
from mergecore.transforms.base import Transform
from mergecore.transforms.thresholds import kth_largest_magnitude


class BreadcrumbsOptions(PluginOptions):
    """Options of breadcrumbs."""

    smallest: float = Field(0.85, ge=0, lt=1, description="Share of each tensor's elements dropped as too small.")
    largest: float = Field(0.01, ge=0, lt=1, description="Share dropped as outliers.")

    @model_validator(mode="after")
    def _something_is_left(self) -> BreadcrumbsOptions:
        if self.smallest + self.largest >= 1:
            raise ValueError("smallest and largest together must be below 1")
        return self


class Breadcrumbs(Transform):
    """Keep the elements of each tensor whose rank by magnitude lies between the two shares."""

    Options: ClassVar[type[PluginOptions]] = BreadcrumbsOptions
    elementwise: ClassVar[bool] = False

    def tensor(self, deltas: torch.Tensor, *, name: str, part: int) -> torch.Tensor:
        """Exactly floor(share · size) elements are dropped at each end; equal magnitudes in order of position."""
        flat_NS = deltas.view(len(deltas), -1)
        size = flat_NS.shape[1]
        low, high = int(self.options.smallest * size + 1e-9), int(self.options.largest * size + 1e-9)
        for delta_S in flat_NS:
            magnitude_S = delta_S.abs()
            if low:
                _drop(delta_S, magnitude_S, low, smallest=True)
            if high:
                _drop(delta_S, magnitude_S, high, smallest=False)
        return deltas


def _drop(delta_S: torch.Tensor, magnitude_S: torch.Tensor, count: int, *, smallest: bool) -> None:
    """Zero the ``count`` elements of smallest or largest magnitude; of equal ones the first, or the last."""
    limit = kth_largest_magnitude(magnitude_S, len(magnitude_S) + 1 - count if smallest else count)
    beyond_S = magnitude_S < limit if smallest else magnitude_S > limit
    delta_S.masked_fill_(beyond_S, 0.0)
    tied = (magnitude_S == limit).nonzero().flatten()
    missing = count - int(beyond_S.sum())
    delta_S[tied[:missing] if smallest else tied[len(tied) - missing :]] = 0.0
