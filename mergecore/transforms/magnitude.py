"""Magnitude pruning: keep the largest elements of each task vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from mergecore.options import PluginOptions
from mergecore.transforms.base import Transform
from mergecore.transforms.thresholds import magnitude_threshold

if TYPE_CHECKING:
    from mergecore.task_matrix import TaskMatrix


class MagnitudeOptions(PluginOptions):
    """Options of magnitude pruning."""

    keep: float = Field(0.2, gt=0, le=1, description="Share of the changed parameters of each model that is kept.")


class Magnitude(Transform):
    """Zero everything below the magnitude that the share ``keep`` of a whole task vector reaches."""

    Options: ClassVar[type[PluginOptions]] = MagnitudeOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._threshold_N = torch.empty(0)

    def prepare(self, matrix: TaskMatrix) -> None:
        """Find every model's threshold."""
        count = sum(entry.size for entry in matrix.layout.entries if entry.dense)
        found = [magnitude_threshold(row_P, self.options.keep, count=count) for row_P in matrix.deltas_MD]
        self._threshold_N = torch.tensor(found)

    def tensor(self, deltas: torch.Tensor, *, name: str, part: int) -> torch.Tensor:
        """Elements at the threshold are kept."""
        return deltas.masked_fill_(deltas.abs() < self._threshold_N[:, None], 0.0)
