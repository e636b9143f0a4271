"""What the suites' models have in common: a folder for each recipe, heads by linear probes, the study's config."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mergecore.training import Training, fit


def recipe_folder(home: Path, suite: str, *facts: Any) -> Path:
    """Where a suite trained by this recipe lives."""
    plain = [asdict(fact) if hasattr(fact, "__dataclass_fields__") else fact for fact in facts]
    digest = hashlib.sha256(json.dumps([torch.__version__, plain], sort_keys=True).encode()).hexdigest()
    return home / "suites" / suite / digest[:16]


def fit_aloud(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    parameters: Sequence[torch.nn.Parameter],
    count: int,
    training: Training,
    *,
    seed: int,
    label: str,
) -> None:
    """`mergecore.training.fit` with clipped gradients, and a line on standard error that begins with ``label``."""
    begun = time.perf_counter()
    loss = fit(loss_of, parameters, count, training, seed=seed, clip_norm=1.0)
    print(f"{label}: loss {loss:.3f} after {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)


def fit_jointly(
    features_of: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    heads: Mapping[str, torch.nn.Module],
    labels: Mapping[str, torch.Tensor],
    parameters: Sequence[torch.nn.Parameter],
    training: Training,
    *,
    seed: int,
    label: str,
) -> None:
    """Train on several tasks at once: as many examples of each in every batch, whatever the sets' sizes.

    Args:
        features_of: task to indices of its examples -> their features, one task after the other.
        heads: task to what makes logits of its features.
        labels: task to the labels of its examples.
        parameters: what is trained.
        training: how long and how fast; a batch holds all tasks.
        seed: of the batches.
        label: begins the line on standard error.
    """
    share = training.batch // len(heads)
    generator = torch.Generator().manual_seed(seed)

    def loss_of(_: torch.Tensor) -> torch.Tensor:
        drawn = {task: torch.randint(len(labels[task]), (share,), generator=generator) for task in heads}
        losses = [
            torch.nn.functional.cross_entropy(heads[task](part), labels[task][members])
            for part, (task, members) in zip(features_of(drawn).split(share), drawn.items(), strict=True)
        ]
        return torch.stack(losses).mean()

    fit_aloud(loss_of, parameters, training.batch, training, seed=seed, label=label)


def joint(training: Training, tasks: int) -> Training:
    """The recipe of a single model for several tasks: it sees as many examples of each, in batches as large."""
    share = training.batch // tasks
    return replace(training, steps=math.ceil(training.examples / share), batch=share * tasks)


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
