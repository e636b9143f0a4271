"""Short trainings that repeat to the bit: the quickstart's models, and the benchmarks'."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mergecore.architectures.hub_transformers import quiet_transformers


@dataclass(frozen=True)
class Training:
    """AdamW on random batches, the learning rate warmed up over a tenth of the steps, then on a cosine to zero."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.0

    @property
    def examples(self) -> int:
        """How many examples training sees, repeats counted."""
        return self.steps * self.batch


def fit(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    parameters: Sequence[torch.nn.Parameter],
    count: int,
    training: Training,
    *,
    seed: int,
    clip_norm: float | None = None,
    tick: Callable[[int], None] | None = None,
) -> float:
    """Minimise a loss over ``parameters``.

    Args:
        loss_of: the mean loss of the examples with these indices.
        parameters: what is trained.
        count: number of examples.
        training: how long and how fast.
        seed: of the batches.
        clip_norm: longest gradient; None clips nothing.
        tick: called with each batch's size when it is done.

    Returns:
        The last batch's loss, before its step.
    """
    optimiser = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _learning_rate_share(step / training.steps))
    loss = torch.tensor(float("nan"))
    for members in itertools.islice(_batches(count, training.batch, seed), training.steps):
        loss = loss_of(members)
        optimiser.zero_grad()
        loss.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimiser.step()
        schedule.step()
        if tick is not None:
            tick(len(members))
    return float(loss.detach())


def _learning_rate_share(elapsed: float) -> float:
    """Linear warm-up over the first tenth, under a cosine from one to zero."""
    return min(0.01 + 10 * elapsed, 0.5 * (1 + float(np.cos(np.pi * elapsed))))


def _batches(count: int, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches of indices; each pass over the data has its own order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:size]
        order = order[size:]


@contextlib.contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """One thread, gradients on, a seeded global generator and a quiet transformers; all restored afterwards.

    The order of a sum depends on the number of threads, so weights repeat to the bit only if that is fixed.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), quiet_transformers():
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
