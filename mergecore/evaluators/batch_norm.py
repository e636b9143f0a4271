"""Running statistics of batch-norm layers, estimated again after a merge.

What a layer sees depends on all merged weights before it, so no combination of the parents' statistics describes it
(Jordan et al. 2023, REPAIR, https://arxiv.org/abs/2211.08403; what `torch.optim.swa_utils.update_bn` does for averaged
weights).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate
from mergecore.evaluators.batching import Batcher, is_out_of_memory

STATISTICS = ("running_mean", "running_var")


def estimate_statistics(
    candidate: Candidate, module: torch.nn.Module, count: int, batch: Callable[[int], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Means of the batches' statistics, each batch with the same weight; the network is left as it was found.

    Args:
        candidate: says how forward passes are run.
        module: the network, with at least one batch-norm layer.
        count: number of batches.
        batch: [b, C, H, W] of each number, b > 1. Never cut when memory runs out: that would change the statistics.

    Returns:
        Name in the network's state dict to tensor, for the running mean and variance of each layer that was reached.

    Raises:
        InputError: a batch does not fit in memory.
    """
    layers = norm_layers(module)
    counts = {f"{name}.num_batches_tracked": torch.zeros_like(_count(layer)) for name, layer in layers.items()}
    found = {
        f"{name}.{kind}": torch.zeros_like(getattr(layer, kind))
        for name, layer in layers.items()
        for kind in STATISTICS
    }

    def forward(number: int, _: int) -> None:
        try:
            with candidate.forward():
                torch.func.functional_call(module, found | counts, (batch(number),), tie_weights=False)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                "A batch that batch-norm statistics are estimated on does not fit in memory.",
                "Set a smaller args.batch_norm.batch_size; it is not changed by itself, because it changes results.",
            ) from error

    with _averaging(layers.values()):
        Batcher(1, example_bytes=0, device=candidate.device).map(count, forward)
    reached = {name.rpartition(".")[0] for name, count in counts.items() if int(count)}
    return {name: tensor for name, tensor in found.items() if name.rpartition(".")[0] in reached}


def norm_layers(module: torch.nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers that keep running statistics, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


@contextlib.contextmanager
def _averaging(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """In the block, layers normalise by their batch and keep cumulative averages."""
    before = [(layer, layer.momentum, layer.training) for layer in layers]
    try:
        for layer, _, _ in before:
            layer.momentum = None
            layer.training = True
        yield
    finally:
        for layer, momentum, training in before:
            layer.momentum = momentum
            layer.training = training


def _count(layer: _BatchNorm) -> torch.Tensor:
    assert layer.num_batches_tracked is not None  # kept wherever running statistics are
    return layer.num_batches_tracked
