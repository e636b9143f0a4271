"""Training of the suites' models: seeded, on one thread, cached by recipe."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergecore.architectures.hub_transformers import quiet_transformers


@dataclass(frozen=True)
class Training:
    """AdamW on random batches, warmed up over a tenth of the steps, then on a cosine to zero."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.0


def recipe_folder(home: Path, suite: str, *facts: Any) -> Path:
    """Where a suite trained by this recipe lives."""
    plain = [asdict(fact) if hasattr(fact, "__dataclass_fields__") else fact for fact in facts]
    digest = hashlib.sha256(json.dumps([torch.__version__, plain], sort_keys=True).encode()).hexdigest()
    return home / "suites" / suite / digest[:16]


def fit(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    parameters: Sequence[torch.nn.Parameter],
    count: int,
    training: Training,
    *,
    seed: int,
    label: str,
) -> None:
    """Minimise a loss over ``parameters``.

    Args:
        loss_of: the mean loss of the examples with these indices.
        parameters: what is trained.
        count: number of examples.
        training: how long and how fast.
        seed: of the batches.
        label: for the line on standard error.
    """
    begun = time.perf_counter()
    optimiser = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share(step / training.steps))
    loss = torch.tensor(float("nan"))
    for members in itertools.islice(_batches(count, training.batch, seed), training.steps):
        loss = loss_of(members)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
    print(f"{label}: loss {loss.item():.3f} after {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)


def _share(elapsed: float) -> float:
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
    """One thread, a seeded global generator, a quiet transformers; restored afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), quiet_transformers():
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def linear_probe(features_nD: torch.Tensor, labels_n: torch.Tensor, classes: int) -> torch.nn.Linear:
    """A linear classifier on fixed features, by logistic regression with a small penalty."""
    head = torch.nn.Linear(features_nD.shape[1], classes)
    mean_D, std_D = features_nD.mean(0), features_nD.std(0) + 1e-6
    scaled_nD = (features_nD - mean_D) / std_D
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimiser = torch.optim.LBFGS(head.parameters(), lr=1.0, max_iter=80, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(scaled_nD), labels_n) + 1e-3 * (head.weight**2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():  # fold the scaling in, so that the head takes features as they are
        head.bias.sub_(head.weight @ (mean_D / std_D))
        head.weight.div_(std_D)
    return head.requires_grad_(False)


def study(
    name: str, base: Path, models: dict[str, Path], data: dict[str, Path], *, tasks: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """The study's config: one task a model, chosen on validation data, reported on test data.

    Args:
        name: of the suite.
        base: its folder.
        models: task to folder.
        data: task to file.
        tasks: what the tasks have in common: evaluator, metric, args, and ``limit`` of validation examples.
        changes: further keys of the config.
    """
    common = dict(tasks)
    limit = common.pop("limit", None)
    return {
        "name": name,
        "base": str(base),
        "models": [{"name": task, "source": str(folder)} for task, folder in models.items()],
        "tasks": [
            {
                "name": task,
                "dataset": {"path": str(data[task]), "split": "validation", "test_split": "test", "limit": limit},
                **common,
            }
            for task in models
        ],
        **changes,
    }
