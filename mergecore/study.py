"""A prepared study: everything a config names, opened, checked and fingerprinted.

Evaluations of a study are facts about content: `Study.evaluation_key` is what the ledger stores them under.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergecore.alignment import BASE_HEAD, Alignment, align
from mergecore.architectures.base import Architecture
from mergecore.architectures.build import build_module, resolve
from mergecore.checkpoints import Checkpoint, open_checkpoint
from mergecore.config import DatasetConfig, StudyConfig, TaskConfig
from mergecore.errors import InputError
from mergecore.evaluators import EVALUATORS
from mergecore.evaluators.base import Context, Evaluator
from mergecore.heads import StoredHead, store_head
from mergecore.search import SEARCHES, Objectives, Search
from mergecore.task_vectors import build_task_matrix, check_mergeable
from mergecore.vocabularies import check_vocabularies

NUMBER_CRUNCHERS = ("torch", "transformers", "numpy")
"""Libraries whose version can change a metric; part of every evaluation's key."""


@dataclass(frozen=True)
class Measured:
    """One thing to measure on a candidate: a task on the data of the search, a part of it, or its held-out split.

    Attributes:
        part: whether it is the part of the data of the search that candidates are measured on first.
        head: the model whose head measures it; None when every tensor is merged.
        key: content of data, evaluator, network and head.
        examples: number of examples of one evaluation; 0 when unknown.
        rows: number of rows that were drawn from the dataset; 0 when its limit bounds nothing.
    """

    task: TaskConfig
    dataset: DatasetConfig | None
    held_out: bool
    context: Context
    head: str | None = None
    key: str = ""
    examples: int = 0
    rows: int = 0
    part: bool = False

    def evaluator(self) -> Evaluator:
        """A new evaluator of this task; it opens data, so keep it."""
        return EVALUATORS.get(self.task.evaluator)(self.task, self.dataset, self.context)

    @property
    def label(self) -> str:
        """Name for messages."""
        return self.task.name + (" (held out)" if self.held_out else " (part of the data)" if self.part else "")


@dataclass(frozen=True)
class Study:
    """What a run works on; small, plain data that travels to workers.

    Attributes:
        config: the validated config.
        home: MERGECORE_HOME.
        models: names of the N columns of the task matrix, in coefficient order: the config's models, or one merge of
            them all.
        matrix_folder: the task matrix on disk.
        matrix_key: its content key.
        base_folder: folder with config and tokenizer of the base, if it has one.
        heads: the heads that are not merged, by model; empty when every tensor is merged.
        measured: the T tasks on the data of the search, in config order, then those with a held-out split, then each
            on a part of the data if candidates are measured on that first.
        device: "cpu" or "cuda": where workers hold candidates.
        precision: of matrix products: "float32", "bfloat16" or "float16".
        fingerprints: content of base, models and data, for the run's config.yaml.
    """

    config: StudyConfig
    home: Path
    models: tuple[str, ...]
    matrix_folder: Path
    matrix_key: str
    base_folder: Path | None
    heads: dict[str, StoredHead]
    measured: tuple[Measured, ...]
    device: str
    precision: str
    fingerprints: dict[str, Any]

    @property
    def of_models(self) -> bool:
        """Whether the columns are those of the config's models, and not one merge of them all."""
        return self.models == tuple(model.name for model in self.config.models)

    @property
    def search_tasks(self) -> list[int]:
        """Indices into `measured` of the tasks on the data of the search."""
        return [i for i, item in enumerate(self.measured) if not (item.held_out or item.part)]

    @property
    def held_out_tasks(self) -> list[int]:
        """Indices into `measured` of the held-out splits; empty when the config names none."""
        return [i for i, item in enumerate(self.measured) if item.held_out]

    @property
    def part_tasks(self) -> list[int]:
        """Indices into `measured` of the tasks on a part of the data; empty when all of it comes first."""
        return [i for i, item in enumerate(self.measured) if item.part]

    @property
    def objectives(self) -> Objectives:
        """Names, directions and ranges of the T objectives."""
        return objectives_of(self.config)

    @property
    def ledger_path(self) -> Path:
        """The ledger that all runs under this home share."""
        return self.home / "ledger.sqlite"

    def evaluation_key(self, coefficients: Sequence[float] | np.ndarray, measured: int) -> str:
        """Content key of one evaluation: weights, coefficients, data, evaluator, network, head, precision, code.

        Coefficients count to the last bit.
        """
        bits = [float(c).hex() for c in np.asarray(coefficients, dtype=np.float64) + 0.0]  # + 0.0: no negative zero
        facts = [self.matrix_key, bits, self.measured[measured].key, self.precision, self.device, crunchers()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def over(self, matrix_key: str, models: Sequence[str]) -> Study:
        """The same tasks, measured on the candidates of another task matrix of this home.

        Args:
            matrix_key: content key of that matrix, which lies beside this one.
            models: names of its columns.
        """
        return replace(
            self,
            models=tuple(models),
            matrix_folder=self.matrix_folder.parent / matrix_key,
            matrix_key=matrix_key,
            measured=tuple(
                replace(
                    item, context=replace(item.context, weights_key=_weights_key(matrix_key, self.heads, item.head))
                )
                for item in self.measured
            ),
        )


def shares(measured: Sequence[Measured]) -> np.ndarray:
    """For each task the share of its examples that every candidate is measured on first, [T]; 1 where that is all."""
    whole = {item.task.name: item.examples for item in measured if not (item.held_out or item.part)}
    part = {item.task.name: item.examples for item in measured if item.part}
    return np.array([part[name] / whole[name] if name in part else 1.0 for name in whole])


def objectives_of(config: StudyConfig) -> Objectives:
    """The T objectives of a config."""
    return Objectives(
        names=tuple(task.name for task in config.tasks),
        maximise=tuple(task.maximise for task in config.tasks),
        lower=tuple(task.bounds[0] for task in config.tasks),
        upper=tuple(task.bounds[1] for task in config.tasks),
        owners=config.owners,
        models=tuple(model.name for model in config.models),
    )


@cache
def crunchers() -> dict[str, str]:
    """Versions that can change a metric."""
    return {name: version(name) for name in NUMBER_CRUNCHERS}


def versions() -> dict[str, str]:
    """Versions worth keeping with a run."""
    names = ("mergecore", "torch", "transformers", "numpy", "scipy", "pymoo", "moocore", "ray", "prefect", "mlflow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def new_search(config: StudyConfig) -> Search:
    """The search method that the config names, ready to be asked."""
    cls = SEARCHES.get(config.search.method)
    return cls(config.search, models=len(config.models), objectives=objectives_of(config))


@dataclass(frozen=True)
class Opened:
    """What `prepare` and `mergecore.preflight.check` open: checkpoints that fit, and tasks that can be measured.

    Attributes:
        base: the base as it is.
        models: the models as they are.
        alignment: the parts of them that are merged, and the heads that are not.
        heads: those heads, on disk.
        measured: what is measured, with content keys.
        notes: what a user should know.
    """

    base: Checkpoint
    models: dict[str, Checkpoint]
    alignment: Alignment
    heads: dict[str, StoredHead]
    measured: tuple[Measured, ...]
    notes: tuple[str, ...]


def open_study(config: StudyConfig, home: Path) -> Opened:
    """Open everything that a config names, without reading more than headers, heads and data.

    Raises:
        InputError: anything that cannot work, before any evaluation.
    """
    device_of(config)  # no GPU where one is asked for: say so before anything is opened
    base = open_checkpoint(config.base, home=home)
    models = {model.name: open_checkpoint(model.source, home=home) for model in config.models}
    alignment = align(base, models, heads=config.merge.heads, vocabulary=config.merge.vocabulary)
    check_mergeable(alignment.base, alignment.models)
    notes = [*alignment.notes, *check_vocabularies(base, models)]
    heads = {name: store_head(home / "heads", head, home / "fingerprints") for name, head in alignment.heads.items()}
    measured = [_measured(config, home, base, heads, task, task.dataset, False) for task in config.tasks]
    measured += [
        _measured(config, home, base, heads, task, _held_out(task.dataset), True)
        for task in config.tasks
        if task.dataset is not None and task.dataset.test_split is not None
    ]
    if len({item.task.name for item in measured if item.held_out}) not in (0, len(config.tasks)):
        raise InputError("Some tasks name a test_split and some do not.", "Give every task one, or none.")
    if config.budget.share < 1:
        measured += [_part(config, home, base, heads, item) for item in measured if not item.held_out]
    return Opened(base, models, alignment, heads, tuple(measured), tuple(notes))


def prepare(
    config: StudyConfig,
    home: Path,
    *,
    opened: Opened | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Open everything, check that it fits, and build (or map) the task matrix.

    Args:
        config: what is merged and measured.
        home: MERGECORE_HOME.
        opened: what `open_study` gave for this config, or for one that differs in ``merge.transform`` and its options.
        progress: of `build_task_matrix`.

    Raises:
        InputError: anything that cannot work, before any evaluation.
    """
    opened = opened or open_study(config, home)
    prints = home / "fingerprints"
    matrix = build_task_matrix(
        home / "task_matrices",
        opened.alignment.base,
        opened.alignment.models,
        transform=config.merge.transform,
        options=config.merge.options,
        storage=config.merge.storage,
        fingerprints=prints,
        progress=progress,
    )
    fingerprints = {
        "base": opened.base.fingerprint(prints).total,
        "models": {name: model.fingerprint(prints).total for name, model in opened.models.items()},
        "tasks": {item.label: item.key for item in opened.measured},
        "task_matrix": matrix.key,
    }
    study = Study(
        config=config,
        home=home,
        models=tuple(opened.models),
        matrix_folder=home / "task_matrices" / matrix.key,
        matrix_key=matrix.key,
        base_folder=opened.base.folder,
        heads=opened.heads,
        measured=opened.measured,
        device=device_of(config),
        precision=precision_of(config),
        fingerprints=fingerprints,
    )
    return study.over(matrix.key, study.models)


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
    held_out: bool,
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
    item = Measured(task, dataset, held_out, context, head)
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
        item = _measured(config, home, base, heads, whole.task, dataset, False)
        if 0 < item.examples < whole.examples:
            return replace(item, part=True)
    reason = "is too small for a part of it" if rows else f"is not drawn from by its evaluator {whole.task.evaluator!r}"
    raise InputError(
        f"budget.share is {config.budget.share:g}, but the data of the task {whole.task.name!r} {reason}.",
        "Leave budget.share out.",
    )


def _weights_key(matrix_key: str, heads: dict[str, StoredHead], head: str | None) -> str:
    return matrix_key if head is None else f"{matrix_key}-{heads[head].digest}"


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


def device_of(config: StudyConfig) -> str:
    """ "cuda" when workers are given GPUs.

    Raises:
        InputError: workers of this machine are to have GPUs that it has not.
    """
    execution = config.execution
    if execution.gpus_per_worker == "auto":
        return "cuda" if execution.ray_address is None and torch.cuda.is_available() else "cpu"
    if execution.gpus_per_worker and execution.ray_address is None and not torch.cuda.is_available():
        raise InputError(
            f"execution.gpus_per_worker is {execution.gpus_per_worker:g}, but torch finds no GPU on this machine.",
            "Leave it away, or name a cluster with 'execution: {ray_address: …}'.",
        )
    return "cuda" if execution.gpus_per_worker else "cpu"


def precision_of(config: StudyConfig) -> str:
    """Of matrix products: what the config says, or what suits the device."""
    if config.execution.precision != "auto":
        return config.execution.precision
    return "bfloat16" if device_of(config) == "cuda" else "float32"
