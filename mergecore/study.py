"""A prepared study: everything a config names, opened, checked and fingerprinted.

Evaluations of a study are facts about content: `Study.evaluation_key` is what the ledger stores them under.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mergecore.checkpoints.alignment import Alignment, align
from mergecore.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mergecore.checkpoints.vocabularies import check_vocabularies
from mergecore.config import StudyConfig
from mergecore.execution import device_of, precision_of
from mergecore.heads import StoredHead, store_head
from mergecore.measured import Measured, Role, measured_tasks
from mergecore.search import SEARCHES, Objectives, Search
from mergecore.task_vectors import build_task_matrix, check_mergeable
from mergecore.transforms import TRANSFORMS

NUMBER_CRUNCHERS = ("torch", "transformers", "numpy")
"""Libraries whose version can change a metric; part of every evaluation's key."""

WITHOUT_TRACE = {
    "workers",
    "ray_address",
    "attempts",
    "minutes_per_evaluation",
    "retry_failed",
    "gpus_per_worker",
    "precision",
}
"""Keys of ``execution:`` that leave no trace in a front; what the last two come to counts by itself."""

FRONT_MAKERS = ("mergecore", "scipy", "pymoo", "moocore", "botorch", "scikit-learn")
"""Libraries whose version can change a front that is found from the same metrics."""


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
        columns: content key of the base, then one of each column; empty where columns depend on each other.
        base_folder: folder with config and tokenizer of the base, if it has one.
        heads: the heads that are not merged, by model; empty when every tensor is merged.
        measured: the T tasks on the data of the search, in config order, then those with a held-out split, then each
            on a part of the data if candidates are measured on that first, then those with training data of their own
            if the method learns on it.
        device: "cpu" or "cuda": where workers hold candidates.
        precision: of matrix products: "float32", "bfloat16" or "float16".
        fingerprints: content of base, models and data, for the run's config.yaml.
        routers: trained routers by which a candidate is made of a preference (`mergecore.pareto_moe`); None where it is
            made of one coefficient for each column.
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
    routers: Path | None = None
    columns: tuple[str, ...] = ()

    @property
    def of_models(self) -> bool:
        """Whether a candidate has one coefficient for each of the config's models."""
        return self.routers is None and self.models == tuple(model.name for model in self.config.models)

    @property
    def search_tasks(self) -> list[int]:
        """Indices into `measured` of the tasks on the data of the search."""
        return self._with_role("search")

    @property
    def held_out_tasks(self) -> list[int]:
        """Indices into `measured` of the held-out splits; empty when the config names none."""
        return self._with_role("held_out")

    @property
    def part_tasks(self) -> list[int]:
        """Indices into `measured` of the tasks on a part of the data; empty when all of it comes first."""
        return self._with_role("part")

    @property
    def training_tasks(self) -> list[int]:
        """Indices into `measured` of what methods learn on by gradients: the training splits, or the search's data."""
        return self._with_role("training") or self.search_tasks

    def _with_role(self, role: Role) -> list[int]:
        return [i for i, item in enumerate(self.measured) if item.role == role]

    @property
    def objectives(self) -> Objectives:
        """Names, directions and ranges of the T objectives."""
        return objectives_of(self.config)

    @property
    def digest(self) -> str:
        """Of everything that a finished run's front follows from: config, content, and the code that counts."""
        config = self.config.model_dump(mode="json", exclude={"execution": WITHOUT_TRACE})
        facts = [config, self.fingerprints, self.precision, self.device]
        facts += [{name: version(name) for name in FRONT_MAKERS}, crunchers()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def ledger_path(self) -> Path:
        """The ledger that all runs under this home share."""
        return self.home / "ledger.sqlite"

    def evaluation_key(self, coefficients: Sequence[float] | np.ndarray, measured: int) -> str:
        """Content key of one evaluation: weights, coefficients, data, evaluator, network, head, precision, code.

        Coefficients count to the last bit. A column with coefficient zero is no part of the weights, so that a merge of
        some models is known whatever becomes of the others.
        """
        bits = [float(c).hex() for c in np.asarray(coefficients, dtype=np.float64) + 0.0]  # + 0.0: no negative zero
        weights: list[Any] = [self.matrix_key, bits]
        if self.columns and 0.0 in coefficients:
            base, *columns = self.columns
            weights = [base, [[key, bit] for key, c, bit in zip(columns, coefficients, bits, strict=True) if c]]
        facts = [*weights, self.measured[measured].key, self.precision, self.device, crunchers()]
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
            routers=None,
            columns=(),
            measured=tuple(
                replace(
                    item, context=replace(item.context, weights_key=_weights_key(matrix_key, self.heads, item.head))
                )
                for item in self.measured
            ),
        )

    def routed(self, routers: Path) -> Study:
        """The same tasks, measured on what routers make of the task vectors for a preference.

        Args:
            routers: the trained routers, a file that is named by its content key.
        """
        key = hashlib.sha256(json.dumps([self.matrix_key, routers.stem]).encode()).hexdigest()
        routed = self.over(key, [task.name for task in self.config.tasks])
        return replace(routed, matrix_folder=self.matrix_folder, routers=routers)


def objectives_of(config: StudyConfig) -> Objectives:
    """The T objectives of a config."""
    return Objectives(
        names=tuple(task.name for task in config.tasks),
        maximise=tuple(task.maximise for task in config.tasks),
        lower=tuple(task.bounds[0] for task in config.tasks),
        upper=tuple(task.bounds[1] for task in config.tasks),
        owners=config.owners,
        models=tuple(model.name for model in config.models),
        parts=TRANSFORMS.get(config.merge.transform).parts,
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
    return Opened(base, models, alignment, heads, measured_tasks(config, home, base, heads), tuple(notes))


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
    return replace(study.over(matrix.key, study.models), columns=_columns(config, opened, prints))


def _columns(config: StudyConfig, opened: Opened, prints: Path) -> tuple[str, ...]:
    """`Study.columns`; what is merged of a checkpoint can depend on the others, so that this is what counts."""
    if not TRANSFORMS.get(config.merge.transform).separate:
        return ()
    merged = (opened.alignment.base, *opened.alignment.models.values())
    return tuple(f"{item.fingerprint(prints).total}-{config.merge.storage}" for item in merged)


def _weights_key(matrix_key: str, heads: dict[str, StoredHead], head: str | None) -> str:
    return matrix_key if head is None else f"{matrix_key}-{heads[head].digest}"
