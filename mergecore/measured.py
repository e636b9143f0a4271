"""What a study measures: tasks, each on the data of the search, on held-out data, and on what methods learn from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mergecore.architectures.base import Architecture
from mergecore.architectures.build import build_module, resolve
from mergecore.checkpoints.alignment import BASE_HEAD
from mergecore.checkpoints.checkpoint import Checkpoint
from mergecore.config import DatasetConfig, StudyConfig, TaskConfig
from mergecore.errors import InputError
from mergecore.evaluators import EVALUATORS
from mergecore.evaluators.base import Context, Evaluator
from mergecore.heads import StoredHead

Role = Literal["search", "part", "held_out", "training"]
ROLES: dict[Role, str] = {
    "search": "",
    "part": " (part of the data)",
    "held_out": " (held out)",
    "training": " (training data)",
}
"""What messages add to a task's name."""


@dataclass(frozen=True)
class Measured:
    """One thing to measure on a candidate: a task on some data.

    Attributes:
        role: of the data: that of the search; the part of it that candidates are measured on first; the held-out split;
            labelled data that methods learn on by gradients.
        head: the model whose head measures it; None when every tensor is merged.
        key: content of data, evaluator, network and head.
        examples: number of examples of one evaluation; 0 when unknown.
        rows: number of rows that were drawn from the dataset; 0 when its limit bounds nothing.
    """

    task: TaskConfig
    dataset: DatasetConfig | None
    role: Role
    context: Context
    head: str | None = None
    key: str = ""
    examples: int = 0
    rows: int = 0

    def evaluator(self) -> Evaluator:
        """A new evaluator of this task; it opens data, so keep it."""
        return EVALUATORS.get(self.task.evaluator)(self.task, self.dataset, self.context)

    @property
    def label(self) -> str:
        """Name for messages."""
        return self.task.name + ROLES[self.role]


def shares(measured: Sequence[Measured]) -> np.ndarray:
    """For each task the share of its examples that every candidate is measured on first, [T]; 1 where that is all."""
    whole = {item.task.name: item.examples for item in measured if item.role == "search"}
    part = {item.task.name: item.examples for item in measured if item.role == "part"}
    return np.array([part[name] / whole[name] if name in part else 1.0 for name in whole])


def measured_tasks(
    config: StudyConfig, home: Path, base: Checkpoint, heads: dict[str, StoredHead]
) -> tuple[Measured, ...]:
    """All that a study measures, opened and checked, role after role in the order of the config's tasks.

    Raises:
        InputError: data, evaluator, network or head of a task cannot be used.
    """

    def on(role: Role, task: TaskConfig, dataset: DatasetConfig | None) -> Measured:
        return _measured(config, home, base, heads, task, dataset, role)

    data = [(task, task.dataset) for task in config.tasks]
    measured = [on("search", task, dataset) for task, dataset in data]
    measured += [on("held_out", task, _held_out(found)) for task, found in data if found and found.test_split]
    if sum(item.role == "held_out" for item in measured) not in (0, len(config.tasks)):
        raise InputError("Some tasks name a test_split and some do not.", "Give every task one, or none.")
    if config.budget.share < 1:
        measured += [_part(config, home, base, heads, item) for item in measured if item.role == "search"]
    if config.learns:
        measured += [on("training", task, _training(found)) for task, found in data if found and found.train_split]
        if sum(item.role == "training" for item in measured) not in (0, len(config.tasks)):
            raise InputError("Some tasks name a train_split and some do not.", "Give every task one, or none.")
    return tuple(measured)


def network(config: StudyConfig, base_folder: Path | None, head: StoredHead | None) -> Architecture:
    """The network that a task is measured on: the base's, or that of the model whose head it uses.

    Raises:
        InputError: nothing says how to build it.
    """
    if head is None:
        return resolve(config.architecture, base_folder, config.base)
    return resolve(config.architecture, head.folder, head.source, classes=head.classes)


def build_network(
    config: StudyConfig,
    base_folder: Path | None,
    head: StoredHead | None,
    weights: Mapping[str, torch.Tensor],
    device: torch.device,
) -> torch.nn.Module:
    """`network`, over tensors on ``device`` (`mergecore.architectures.build.build_module`).

    Raises:
        InputError: the tensors do not make that network.
    """
    return build_module(
        network(config, base_folder, head),
        weights,
        source=head.source if head is not None else config.base,
        device=device,
        spare=head is not None,
    )


def _measured(
    config: StudyConfig,
    home: Path,
    base: Checkpoint,
    heads: dict[str, StoredHead],
    task: TaskConfig,
    dataset: DatasetConfig | None,
    role: Role,
) -> Measured:
    """One task, opened and checked, with the content key of all but weights and coefficients."""
    needs_network = EVALUATORS.get(task.evaluator).needs_network
    head = _head_of(task, heads, needs_network)
    stored = heads[head] if head is not None else None
    by_prefix = config.base if config.base.startswith("open_clip:") else ""
    context = Context(
        home,
        base=config.base,
        base_folder=base.folder,
        head_folder=stored.folder if stored is not None else None,
        architecture=config.architecture or by_prefix,
        classes=stored.classes if stored is not None else None,
    )
    try:
        facts = network(config, base.folder, stored).facts
    except InputError:
        if needs_network:
            raise
        facts = None  # a function of the user's own may do without
    item = Measured(task, dataset, role, context, head)
    evaluator = item.evaluator()
    evaluator.check(base)
    content = [evaluator.key, facts, stored.digest if stored is not None else None]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return replace(item, key=key, examples=evaluator.examples, rows=evaluator.rows)


def _part(config: StudyConfig, home: Path, base: Checkpoint, heads: dict[str, StoredHead], whole: Measured) -> Measured:
    """The part of a task's data that comes first: a smaller draw by the same seed, so it lies in what is drawn of it.

    Raises:
        InputError: the task has no rows to draw from, or no fewer than all.
    """
    rows = whole.rows if whole.dataset is not None else 0
    limit = math.ceil(config.budget.share * rows)
    if whole.dataset is not None and 0 < limit < rows:
        dataset = whole.dataset.model_copy(update={"limit": limit})
        item = _measured(config, home, base, heads, whole.task, dataset, "part")
        if 0 < item.examples < whole.examples:
            return item
    reason = "is too small for a part of it" if rows else f"is not drawn from by its evaluator {whole.task.evaluator!r}"
    raise InputError(
        f"budget.share is {config.budget.share:g}, but the data of the task {whole.task.name!r} {reason}.",
        "Leave budget.share out.",
    )


def _head_of(task: TaskConfig, heads: dict[str, StoredHead], needs_network: bool) -> str | None:
    """Whose head measures a task; None when every tensor is merged."""
    name = task.head or task.name
    if name in heads:
        return name
    own = [head for head in heads if head != BASE_HEAD]
    if task.head is not None and not (task.head == BASE_HEAD or not own):
        raise InputError(f"The task {task.name!r}: the model {task.head!r} has no head of its own.", _say_head(own))
    if own and needs_network:
        raise InputError(f"The models keep their own heads, and no model is called {task.name!r}.", _say_head(own))
    return None


def _say_head(own: list[str]) -> str:
    listed = ", ".join(repr(name) for name in own)
    return f"Say whose head measures the task: 'head: …', one of {listed} or 'base'."


def _held_out(dataset: DatasetConfig) -> DatasetConfig:
    return dataset.model_copy(update={"split": dataset.test_split, "limit": None})


def _training(dataset: DatasetConfig) -> DatasetConfig:
    return dataset.model_copy(update={"split": dataset.train_split, "limit": dataset.train_limit})
