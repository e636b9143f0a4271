"""Model breadcrumbs (Davari and Belilovsky, ECCV 2024): drop both the small elements and the outliers of each layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator

from mergecore.options import PluginOptions
from mergecore.transforms.base import Transform


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
            order = torch.argsort(delta_S.abs(), stable=True)
            delta_S[order[:low]] = 0.0
            delta_S[order[size - high :]] = 0.0
        return deltas
