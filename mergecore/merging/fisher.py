"""Fisher merging (Matena and Raffel, "Merging models with Fisher-weighted averaging", NeurIPS 2022).

Each model's weights count by the diagonal of its empirical Fisher information: the mean over labelled examples of its
own tasks of the squared gradient of the loss, example by example. Σ F_n θ_n / Σ F_n is θ_pre + Σ F_n v_n / Σ F_n.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from mergecore.merging.base import Merge, Progress, own_tasks
from mergecore.options import PluginOptions
from mergecore.task_matrix import Entry, TaskMatrix, map_buffer

if TYPE_CHECKING:
    from mergecore.evaluators.base import Candidate, Evaluator
    from mergecore.study import Study


class FisherOptions(PluginOptions):
    """Options of Fisher merging."""

    examples: int = Field(256, ge=1, description="Labelled examples of each model's own tasks, at most.")
    floor: float = Field(1e-6, gt=0, description="Added to each Fisher, as a share of the mean of all.")
    seed: int = Field(0, ge=0, description="Of the draw of examples.")


class Fisher(Merge):
    """The mean of the models, weighted element by element."""

    Options: ClassVar[type[PluginOptions]] = FisherOptions
    needs_data: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._fishers_NP = torch.empty(0, 0)
        self._floor = 0.0
        self._entries: dict[str, Entry] = {}

    def check(self, study: Study) -> None:
        """Each model has a task of its own."""
        own_tasks(study, "fisher")

    def prepare(self, study: Study, matrix: TaskMatrix, progress: Progress | None = None) -> None:
        """One backward pass an example, at each model; Fishers lie in a file, and in memory as far as it is free."""
        from mergecore.gradients import MergedGradients

        gradients, owned = MergedGradients(study), own_tasks(study, "fisher")
        models, length = len(study.models), matrix.layout.length
        with tempfile.TemporaryDirectory(dir=study.home) as folder:  # the file goes when nothing maps it any more
            self._fishers_NP = map_buffer(Path(folder) / "fishers.bin", models * length, torch.float32, True)
            self._fishers_NP = self._fishers_NP.view(models, length)
        self._entries = {entry.name: entry for entry in matrix.layout.entries}
        for n, own in enumerate(owned):
            rng = np.random.default_rng([self.options.seed, n])
            sizes = [gradients.evaluators.evaluator(index).examples for index in own]
            drawn = [(index, row) for index, size in zip(own, sizes, strict=True) for row in range(size)]
            kept = [drawn[i] for i in sorted(rng.permutation(len(drawn))[: self.options.examples].tolist())]
            for done, (index, row) in enumerate(kept):
                gradients.merge(np.eye(models)[n])
                gradients.add(index, functools.partial(_loss, row=row))
                gradient_P = gradients.gradient_P.to(self._fishers_NP.device, torch.float32)
                self._fishers_NP[n].addcmul_(gradient_P, gradient_P, value=1 / len(kept))
                if progress:
                    progress(n * len(kept) + done + 1, models * len(kept))
        # of all tensors: where no loss depends on one, such as attention's biases of keys, its own mean is rounding
        self._floor = self.options.floor * float(self._fishers_NP.mean(dtype=torch.float64))

    def tensor(self, deltas: torch.Tensor, base: torch.Tensor, *, name: str) -> torch.Tensor:
        """Σ F_n v_n / Σ F_n; the plain mean where no loss depends on the weight."""
        entry = self._entries[name]
        fisher = self._fishers_NP[:, entry.offset : entry.offset + entry.size].double().view(deltas.shape)
        fisher = fisher + self._floor + torch.finfo(torch.float64).tiny
        return ((fisher * deltas).sum(dim=0) / fisher.sum(dim=0)).float()


def _loss(evaluator: Evaluator, candidate: Candidate, *, row: int) -> torch.Tensor:
    return evaluator.loss(candidate, np.array([row]))
