"""Consensus merging (Wang et al., "Localizing task information for improved model merging and compression", ICML 2024).

A weight matters to a task where the task's own change is not small against what all other tasks add to it (the paper's
TALL masks). Weights that matter to fewer than ``agree`` tasks are left as they are in the base.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from mergecore.options import PluginOptions
from mergecore.transforms.base import Transform


class ConsensusOptions(PluginOptions):
    """Options of consensus merging."""

    threshold: float = Field(0.4, ge=0, description="Smallest ratio of a task's change to that of all others together.")
    agree: int = Field(2, ge=1, description="To how many tasks a weight must matter.")


class Consensus(Transform):
    """Zero every element that matters to fewer than ``agree`` tasks."""

    Options: ClassVar[type[PluginOptions]] = ConsensusOptions

    def tensor(self, deltas: torch.Tensor, *, name: str, part: int) -> torch.Tensor:
        """The same elements are kept in all task vectors."""
        others_NS = deltas.sum(dim=0) - deltas
        matters_NS = deltas.abs() >= self.options.threshold * others_NS.abs()
        matters_NS &= deltas != 0
        return deltas.masked_fill_(matters_NS.sum(dim=0) < self.options.agree, 0.0)
