"""What the suites' models have in common: a folder for each recipe, heads by linear probes, the study's config."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
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
