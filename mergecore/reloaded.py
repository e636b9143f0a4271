"""Measure an exported checkpoint as it lies on disk, against what was measured when it was merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mergecore.architectures.build import build_module, resolve
from mergecore.checkpoints.checkpoint import open_checkpoint
from mergecore.config import StudyConfig
from mergecore.config_file import parse_config
from mergecore.evaluators.base import Candidate
from mergecore.execution import device_of, in_this_process, precision_of
from mergecore.export import FACTS, export_facts
from mergecore.heads import StoredHead
from mergecore.measured import Measured, Role
from mergecore.study import open_study

KINDS: dict[str, Role] = {"real": "search", "test": "held_out"}
"""What an export knows of its metrics, and the data that they were measured on."""
ROUNDING = 1e-6
"""Relative difference of metrics that the order of sums may make."""


@dataclass(frozen=True)
class Reloaded:
    """One task of an exported checkpoint.

    Attributes:
        task: its label.
        metric: name of the metric.
        expected: what the run measured; NaN where it measured nothing.
        found: what the checkpoint on disk gives.
        tolerance: what they may differ by: rounding, or the metric's standard error where weights were rounded to 16
            bits on the way to the disk.
    """

    task: str
    metric: str
    expected: float
    found: float
    tolerance: float

    @property
    def same(self) -> bool:
        """Whether the numbers agree; true where there is nothing to compare."""
        return not abs(self.found - self.expected) > self.tolerance


def reload_and_measure(folder: Path, home: Path) -> list[Reloaded]:
    """Every task that the exported network can be measured on.

    Args:
        folder: what `mergecore.export.export_model` wrote.
        home: MERGECORE_HOME.

    Raises:
        InputError: it is no export of ours, or the run's data or heads are gone.
    """
    facts = export_facts(folder)
    config = parse_config(facts["config"], where=str(folder / FACTS))
    opened = open_study(config, home)
    checkpoint = open_checkpoint(str(folder), home=home)
    weights = {name: checkpoint.read(name) for name in checkpoint.tensors}
    rounded = any(info.dtype in (torch.float16, torch.bfloat16) for info in checkpoint.tensors.values())
    found = []
    for kind, role in KINDS.items():
        for item in (item for item in opened.measured if item.role == role):
            state = _state(item, facts["head"], weights, opened.heads)
            if state is None or (facts["task"] not in (None, item.task.name)):
                continue
            measured = item.evaluator().evaluate(_candidate(config, folder, item, facts["head"], state, opened.heads))
            metric = item.task.metric
            value, noise = measured.metrics[metric], measured.noise.get(metric, float("nan"))
            slack = noise if rounded and np.isfinite(noise) else ROUNDING * abs(value)
            known = facts["measured"].get(kind, {}).get(item.task.name, float("nan"))
            found.append(Reloaded(item.label, metric, known, value, slack))
    return found


def _state(
    item: Measured, head: str | None, weights: Mapping[str, torch.Tensor], heads: Mapping[str, StoredHead]
) -> Mapping[str, torch.Tensor] | None:
    """The tensors of the network that measures a task; None when the checkpoint holds another task's."""
    if head is not None:
        return weights if item.head == head else None
    return weights if item.head is None else heads[item.head].state_dict(weights)


def _candidate(
    config: StudyConfig,
    folder: Path,
    item: Measured,
    head: str | None,
    state: Mapping[str, torch.Tensor],
    heads: Mapping[str, StoredHead],
) -> Candidate:
    device, precision = in_this_process(device_of(config)), precision_of(config)
    placed = {
        name: tensor.to(device, torch.float32) if tensor.dtype.is_floating_point else tensor.to(device)
        for name, tensor in state.items()
    }
    stored = heads[item.head] if item.head is not None and head is None else None
    place, source = (folder, str(folder)) if stored is None else (stored.folder, stored.source)
    architecture = resolve(config.architecture, place, source, classes=stored.classes if stored else None)
    module = build_module(architecture, placed, source=source, device=device, spare=stored is not None)
    return Candidate(np.zeros(len(config.models)), placed, lambda: module, device=device, precision=precision)
