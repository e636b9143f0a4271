"""AdaMerging (Yang et al., "AdaMerging: Adaptive model merging for multi-task learning", ICLR 2024).

Coefficients that make predictions on unlabelled data of all tasks certain: Adam on the summed mean entropies. Task-wise
there is one coefficient a model, layer-wise one a model and parameter tensor. The authors learn on the test data; here
it is the data of the search, whose labels are not read.

Shape suffixes: G blocks, N models.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from mergecore.merging.base import Merge, Progress
from mergecore.options import PluginOptions
from mergecore.task_matrix import TaskMatrix

if TYPE_CHECKING:
    from mergecore.evaluators.base import Candidate, Evaluator
    from mergecore.study import Study


class AdaMergingOptions(PluginOptions):
    """Options of AdaMerging."""

    steps: int = Field(100, ge=1, description="Of Adam; the paper takes 500.")
    batch_size: int = Field(16, ge=1, description="Examples of each task a step.")
    learning_rate: float = Field(1e-3, gt=0)
    initial: float = Field(0.3, ge=0, le=1, description="Every coefficient at the start.")
    seed: int = Field(0, ge=0, description="Of the batches.")


class TaskWise(Merge):
    """One coefficient a model.

    Attributes:
        coefficients_GN: what was learned, once prepared; one row task-wise.
    """

    Options: ClassVar[type[PluginOptions]] = AdaMergingOptions
    needs_data: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.coefficients_GN = np.empty((0, 0))
        self._blocks: dict[str, int] = {}

    def block_of(self, name: str) -> str:
        """The block of a tensor."""
        return "all"

    def prepare(self, study: Study, matrix: TaskMatrix, progress: Progress | None = None) -> None:
        """Learn the coefficients; each step is a merge and a forward and a backward pass of each task."""
        from mergecore.gradients import CoefficientGradients

        gradients, options = CoefficientGradients(study, self.block_of), self.options
        self._blocks = {name: g for g, name in enumerate(gradients.blocks.names)}
        learned = torch.full((len(self._blocks), len(study.models)), options.initial, dtype=torch.float64)
        optimiser = torch.optim.Adam([learned], lr=options.learning_rate)
        rng = np.random.default_rng(options.seed)
        sizes = {index: gradients.evaluators.evaluator(index).examples for index in study.search_tasks}
        for step in range(options.steps):
            gradients.merge_blocks(learned.numpy())
            learned.grad = torch.zeros_like(learned)
            for index, size in sizes.items():
                rows = rng.integers(size, size=min(options.batch_size, size))
                _, gradient_GN = gradients.gradient(index, functools.partial(entropy, rows=rows))
                learned.grad += torch.from_numpy(gradient_GN)
            optimiser.step()
            learned.clamp_(0.0, 1.0)
            if progress:
                progress(step + 1, options.steps)
        self.coefficients_GN = learned.numpy().copy()

    def tensor(self, deltas: torch.Tensor, base: torch.Tensor, *, name: str) -> torch.Tensor:
        """Σ_n c_gn v_n, as the merge kernel adds them up."""
        c_N = torch.from_numpy(self.coefficients_GN[self._blocks[self.block_of(name)]]).to(deltas.dtype)
        return torch.einsum("n...,n->...", deltas, c_N)


class LayerWise(TaskWise):
    """One coefficient a model and parameter tensor."""

    def block_of(self, name: str) -> str:
        """Each tensor is a block of its own."""
        return name


def entropy(evaluator: Evaluator, candidate: Candidate, rows: np.ndarray) -> torch.Tensor:
    """Mean entropy of the predicted classes of some examples, in nats."""
    log_p = torch.log_softmax(evaluator.logits(candidate, rows).float(), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()
