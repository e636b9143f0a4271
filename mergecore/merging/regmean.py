"""RegMean (Jin et al., "Dataless knowledge fusion by merging weights of language models", ICLR 2023).

The merged weight of a linear layer is the one whose outputs are nearest to every model's own outputs on its own data:
W = (Σ G_n)⁻¹ Σ G_n W_n with the Gram matrices G_n = XᵀX of the layer's inputs, their off-diagonal elements shrunk. The
base cancels, so differences are merged like weights. Everything that is not the weight of a linear layer is averaged;
so are weights that are also an embedding, and attention projections that torch packs into one matrix.

In memory meanwhile: of every model and linear layer the square of the layer's input width, in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from mergecore.merging.base import Merge, Progress, own_tasks
from mergecore.options import PluginOptions
from mergecore.task_matrix import TaskMatrix

if TYPE_CHECKING:
    from mergecore.study import Study

RIDGE = 1e-8
"""Of the mean diagonal element, against inputs that are never active."""


class RegMeanOptions(PluginOptions):
    """Options of RegMean."""

    examples: int = Field(256, ge=1, description="Examples of each model's own tasks, at most; labels are not read.")
    shrink: float = Field(0.9, ge=0, le=1, description="Factor of the off-diagonal elements of the Gram matrices.")
    batch_size: int = Field(16, ge=1)
    seed: int = Field(0, ge=0, description="Of the draw of examples.")


class RegMean(Merge):
    """Linear layers by their inputs' Gram matrices, everything else averaged."""

    Options: ClassVar[type[PluginOptions]] = RegMeanOptions
    needs_data: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._grams: list[dict[str, torch.Tensor]] = []
        self._input_first: set[str] = set()

    def check(self, study: Study) -> None:
        """Each model has a task of its own."""
        own_tasks(study, "regmean")

    def prepare(self, study: Study, matrix: TaskMatrix, progress: Progress | None = None) -> None:
        """Forward passes of each model over its own data."""
        from mergecore.gradients import Networks

        networks, owned = Networks(study), own_tasks(study, "regmean")
        places = {entry.offset: entry.name for entry in matrix.layout.entries if not entry.tied}
        for n, own in enumerate(owned):
            networks.merge(np.eye(len(study.models))[n])
            grams: dict[str, torch.Tensor] = {}
            share = max(1, self.options.examples // len(own))
            for index in own:
                evaluator, candidate = networks.evaluators.evaluator(index), networks.candidate(index)
                rng = np.random.default_rng([self.options.seed, n, index])
                rows = np.sort(rng.permutation(evaluator.examples)[:share])
                with self._recording(candidate.module(), networks.evaluators.weights_P, places, grams), torch.no_grad():
                    for start in range(0, len(rows), self.options.batch_size):
                        evaluator.loss(candidate, rows[start : start + self.options.batch_size])
            self._grams.append(grams)
            if progress:
                progress(n + 1, len(owned))

    def tensor(self, deltas: torch.Tensor, base: torch.Tensor, *, name: str) -> torch.Tensor:
        """A linear system of the layer's inputs, in float64."""
        if any(name not in grams for grams in self._grams):
            return deltas.mean(dim=0)
        weights = deltas.double() if name in self._input_first else deltas.double().transpose(1, 2)  # [N, in, out]
        shrunk = [_shrunk(grams[name], self.options.shrink) for grams in self._grams]
        whole = torch.stack(shrunk).sum(dim=0)
        whole.diagonal().add_(RIDGE * whole.diagonal().mean() + torch.finfo(torch.float64).tiny)
        merged = torch.linalg.solve(whole, sum(gram @ weight for gram, weight in zip(shrunk, weights, strict=True)))
        return (merged if name in self._input_first else merged.T).float()

    @contextlib.contextmanager
    def _recording(
        self, module: torch.nn.Module, weights_P: torch.Tensor, places: dict[int, str], grams: dict[str, torch.Tensor]
    ) -> Iterator[None]:
        """In the block, forward passes add the Gram matrices of linear layers' inputs."""
        with contextlib.ExitStack() as stack:
            for layer in module.modules():
                weight = getattr(layer, "weight", None)
                packed = type(layer).__name__ == "Conv1D"  # of transformers: the weight is [in, out]
                if not (isinstance(layer, torch.nn.Linear) or packed) or not isinstance(weight, torch.Tensor):
                    continue
                if weight.untyped_storage().data_ptr() != weights_P.untyped_storage().data_ptr():
                    continue
                name = places.get(int(weight.storage_offset() - weights_P.storage_offset()))
                if name is None:
                    continue
                if packed:
                    self._input_first.add(name)

                def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                    x_nI = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
                    gram = (x_nI.T @ x_nI).cpu()
                    grams[name] = grams[name] + gram if name in grams else gram

                stack.callback(layer.register_forward_pre_hook(add).remove)
            yield


def _shrunk(gram: torch.Tensor, share: float) -> torch.Tensor:
    return share * gram + (1 - share) * torch.diag(gram.diagonal())
