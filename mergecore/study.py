"""A prepared study: everything a config names, opened, checked and fingerprinted.

Evaluations of a study are facts about content: `Study.evaluation_key` is what the ledger stores them under.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mergecore.architectures import architecture
from mergecore.checkpoints import Checkpoint, open_checkpoint
from mergecore.config import DatasetConfig, StudyConfig, TaskConfig
from mergecore.errors import InputError
from mergecore.evaluators import EVALUATORS
from mergecore.evaluators.base import Context, Evaluator
from mergecore.search import SEARCHES, Objectives, Search
from mergecore.task_matrix import build_task_matrix, check_mergeable

NUMBER_CRUNCHERS = ("torch", "transformers", "numpy")
"""Libraries whose version can change a metric; part of every evaluation's key."""


@dataclass(frozen=True)
class Measured:
    """One thing to measure on a candidate: a task on the data of the search, or on its held-out split."""

    task: TaskConfig
    dataset: DatasetConfig | None
    held_out: bool
    context: Context
    key: str = ""

    def evaluator(self) -> Evaluator:
        """A new evaluator of this task; it opens data, so keep it."""
        return EVALUATORS.get(self.task.evaluator)(self.task, self.dataset, self.context)

    @property
    def label(self) -> str:
        """Name for messages."""
        return f"{self.task.name} (held out)" if self.held_out else self.task.name


@dataclass(frozen=True)
class Study:
    """What a run works on; small, plain data that travels to workers.

    Attributes:
        config: the validated config.
        home: MERGECORE_HOME.
        matrix_folder: the task matrix on disk.
        matrix_key: its content key.
        base_folder: folder with config and tokenizer of the base, if it has one.
        measured: the T tasks on the data of the search, in config order, then those with a held-out split.
        fingerprints: content of base, models and data, for the run's config.yaml.
    """

    config: StudyConfig
    home: Path
    matrix_folder: Path
    matrix_key: str
    base_folder: Path | None
    measured: tuple[Measured, ...]
    fingerprints: dict[str, Any]

    @property
    def models(self) -> list[str]:
        """Names of the N models, in coefficient order."""
        return [model.name for model in self.config.models]

    @property
    def search_tasks(self) -> list[int]:
        """Indices into `measured` of the tasks on the data of the search."""
        return [i for i, item in enumerate(self.measured) if not item.held_out]

    @property
    def held_out_tasks(self) -> list[int]:
        """Indices into `measured` of the held-out splits; empty when the config names none."""
        return [i for i, item in enumerate(self.measured) if item.held_out]

    @property
    def objectives(self) -> Objectives:
        """Names, directions and ranges of the T objectives."""
        return objectives_of(self.config)

    @property
    def ledger_path(self) -> Path:
        """The ledger that all runs under this home share."""
        return self.home / "ledger.sqlite"

    def evaluation_key(self, coefficients: Sequence[float] | np.ndarray, measured: int) -> str:
        """Content key of one evaluation: weights, coefficients, data, evaluator, precision, code versions.

        Coefficients count to the last bit.
        """
        bits = [float(c).hex() for c in np.asarray(coefficients, dtype=np.float64) + 0.0]  # + 0.0: no negative zero
        facts = [self.matrix_key, bits, self.measured[measured].key, "float32", crunchers()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True)
class CheckResult:
    """What `check` found out without evaluating anything."""

    models: int
    tasks: int
    parameters: int
    matrix_bytes: int
    disk_free_bytes: int
    worker_bytes: int
    coefficient_vectors: int
    evaluations: int
    examples: dict[str, int]
    warnings: tuple[str, ...]


def objectives_of(config: StudyConfig) -> Objectives:
    """The T objectives of a config."""
    return Objectives(
        names=tuple(task.name for task in config.tasks),
        maximise=tuple(task.maximise for task in config.tasks),
        lower=tuple(task.bounds[0] for task in config.tasks),
        upper=tuple(task.bounds[1] for task in config.tasks),
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


def prepare(config: StudyConfig, home: Path, *, progress: Callable[[int, int], None] | None = None) -> Study:
    """Open everything, check that it fits, and build (or map) the task matrix.

    Raises:
        InputError: anything that cannot work, before any evaluation.
    """
    base, models, measured = _open(config, home)
    matrix = build_task_matrix(
        home / "task_matrices",
        base,
        models,
        transform=config.merge.transform,
        storage=config.merge.storage,
        fingerprints=home / "fingerprints",
        progress=progress,
    )
    fingerprints = {
        "base": base.fingerprint(home / "fingerprints").total,
        "models": {name: model.fingerprint(home / "fingerprints").total for name, model in models.items()},
        "tasks": {item.label: item.key for item in measured},
        "task_matrix": matrix.key,
    }
    folder = home / "task_matrices" / matrix.key
    keyed = (replace(item, context=replace(item.context, weights_key=matrix.key)) for item in measured)
    return Study(config, home, folder, matrix.key, base.folder, tuple(keyed), fingerprints)


def check(config: StudyConfig, home: Path) -> CheckResult:
    """Everything that can be known in seconds: `prepare` without reading weights and building the task matrix.

    Raises:
        InputError: anything that cannot work.
    """
    base, models, measured = _open(config, home)
    parameters = sum(math.prod(info.shape) for info in base.tensors.values() if info.dtype.is_floating_point)
    stored = 4 if config.merge.storage == "float32" else 2
    matrix_bytes = parameters * (4 + stored * len(models))
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    warnings = []
    if matrix_bytes > free:
        warnings.append(
            f"The task matrix needs up to {matrix_bytes / 1e9:.1f} GB, {str(home)!r} has {free / 1e9:.1f} GB free."
        )
    warnings += base_dtype_notes(base, models)
    search = new_search(config)
    warnings += search.notes()
    held_out = sum(item.held_out for item in measured)
    vectors = search.budget + config.front.verify
    return CheckResult(
        models=len(models),
        tasks=len(config.tasks),
        parameters=parameters,
        matrix_bytes=matrix_bytes,
        disk_free_bytes=free,
        worker_bytes=parameters * 4,
        coefficient_vectors=vectors,
        evaluations=vectors * len(config.tasks) + (config.front.verify + len(models) + 1) * held_out,
        examples={item.label: item.evaluator().examples for item in measured},
        warnings=tuple(warnings),
    )


def base_dtype_notes(base: Checkpoint, models: dict[str, Checkpoint]) -> list[str]:
    """One sentence for each model that stores some floating tensor in another format than the base."""
    notes = []
    for name, model in models.items():
        other = [key for key, info in base.tensors.items() if model.tensors[key].dtype != info.dtype]
        if other:
            found, expected = model.tensors[other[0]], base.tensors[other[0]]
            notes.append(
                f"The model {name!r} stores {len(other)} tensors in another format than the base "
                f"({other[0]!r}: {found} against {expected}); differences are taken in float32."
            )
    return notes


def _open(config: StudyConfig, home: Path) -> tuple[Checkpoint, dict[str, Checkpoint], list[Measured]]:
    base = open_checkpoint(config.base, home=home)
    models = {model.name: open_checkpoint(model.source, home=home) for model in config.models}
    check_mergeable(base, models)
    context = Context(home, base=config.base, base_folder=base.folder)
    wanted = [Measured(task, task.dataset, False, context) for task in config.tasks]
    wanted += [
        Measured(task, task.dataset.model_copy(update={"split": task.dataset.test_split, "limit": None}), True, context)
        for task in config.tasks
        if task.dataset is not None and task.dataset.test_split is not None
    ]
    measured = []
    for item in wanted:
        evaluator = item.evaluator()
        if evaluator.needs_network:
            architecture(base.folder, config.base)
        evaluator.check(base)
        measured.append(replace(item, key=evaluator.key))
    if len({item.task.name for item in measured if item.held_out}) not in (0, len(config.tasks)):
        raise InputError("Some tasks name a test_split and some do not.", "Give every task one, or none.")
    return base, models, measured
