"""Everything that can be known of a study before anything is evaluated."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from mergecore.budget import affordable, budget_notes, check_budget
from mergecore.checkpoints.checkpoint import Checkpoint
from mergecore.config import StudyConfig
from mergecore.execution import workers_here
from mergecore.files import make_writable
from mergecore.measured import shares
from mergecore.search.pwe_moe import PweMoeOptions
from mergecore.study import Opened, new_search, open_study
from mergecore.timing import seconds_of_evaluations


@dataclass(frozen=True)
class CheckResult:
    """What `check` found out without evaluating anything.

    Attributes:
        matrix_bytes: of the task matrix on disk, at most.
        worker_bytes: of each worker's memory beside the task matrix, which workers of a node share.
        coefficient_vectors: the search's, as far as the budget allows, and the verification's.
        evaluations: (coefficients, task) pairs, at most.
        full_pairs: those of the search and the verification, in pairs on all data.
        share: of the data that every candidate is measured on first.
        minutes: that the search may take; None when nothing bounds it.
        examples: task to number of examples; 0 when unknown.
        seconds: task to seconds of one evaluation, from one timed batch; tasks that cannot be timed are missing.
        workers: how many of them would work at the same time here.
        training: what is trained before anything is evaluated; empty when nothing is.
    """

    @property
    def total_seconds(self) -> float | None:
        """Of all evaluations of the search and the verification; None when a task could not be timed."""
        if len(self.seconds) < self.tasks:
            return None
        return sum(self.seconds.values()) / self.tasks * self.full_pairs / self.workers

    models: int
    tasks: int
    parameters: int
    matrix_bytes: int
    disk_free_bytes: int
    worker_bytes: int
    coefficient_vectors: int
    evaluations: int
    full_pairs: float
    share: float
    minutes: float | None
    examples: dict[str, int]
    seconds: dict[str, float]
    workers: int
    training: str
    warnings: tuple[str, ...]


def check(config: StudyConfig, home: Path) -> CheckResult:
    """Everything that can be known in seconds: `prepare` without reading weights and building the task matrix.

    Raises:
        InputError: anything that cannot work.
    """
    make_writable(home)
    opened = open_study(config, home)
    base, models = opened.alignment.base, opened.alignment.models
    parameters = sum(math.prod(info.shape) for info in base.tensors.values() if info.dtype.is_floating_point)
    matrix_bytes = _matrix_bytes(base, models, parameters, config.merge.storage)
    free = shutil.disk_usage(home).free
    warnings = list(opened.notes)
    if matrix_bytes > free:
        warnings.append(
            f"The task matrix needs up to {matrix_bytes / 1e9:.1f} GB, {str(home)!r} has {free / 1e9:.1f} GB free."
        )
    warnings += base_dtype_notes(base, models)
    search, workers = new_search(config), workers_here(config)
    share_T = shares(opened.measured)
    check_budget(config.budget, search, share_T)
    warnings += [*search.notes(workers=workers), *budget_notes(config.budget, search, share_T)]
    held_out = sum(item.role == "held_out" for item in opened.measured)
    vectors, price = affordable(config.budget, search, share_T)
    again = config.front.verify if search.takes_estimates else 0  # else the front is what was measured
    pairs, verified = min(search.pairs, vectors * len(config.tasks)), again * len(config.tasks)
    return CheckResult(
        models=len(models),
        tasks=len(config.tasks),
        parameters=parameters,
        matrix_bytes=matrix_bytes,
        disk_free_bytes=free,
        worker_bytes=_worker_bytes(opened, parameters),
        coefficient_vectors=vectors + again,
        minutes=config.budget.minutes,
        evaluations=pairs + verified + (config.front.verify + len(models) + 1) * held_out,
        full_pairs=price + verified,
        share=config.budget.share,
        examples={item.label: item.examples for item in opened.measured},
        seconds=seconds_of_evaluations(config, opened),
        workers=workers,
        training=_training(config, base),
        warnings=tuple(warnings),
    )


def _training(config: StudyConfig, base: Checkpoint) -> str:
    """What PWE-MoE would train, in a few words."""
    options = config.search
    if not isinstance(options, PweMoeOptions):
        return ""
    from mergecore.pareto_moe.routed_study import plan_routers

    plan = plan_routers(config, options, base.tensors)
    count, size = len(plan.modules), plan.build().size()
    tasks = len(config.tasks)
    return (
        f"{count} routers with {count * size:,} parameters, {options.steps} steps of "
        f"{options.preferences_per_step * options.batch_size * tasks} examples"
    )


def _matrix_bytes(base: Checkpoint, models: dict[str, Checkpoint], parameters: int, storage: str) -> int:
    """At most: the base, every full model's differences, every adapter's factors."""
    adapters = [model.updates for model in models.values()]
    full = sum(not updates for updates in adapters)
    factors = sum(
        update.dtype.itemsize * update.rank * (base.tensors[name].shape[0] + math.prod(base.tensors[name].shape[1:]))
        for updates in adapters
        for name, update in updates.items()
    )
    formats = {info.dtype.itemsize for info in base.tensors.values() if info.dtype.is_floating_point}
    of_base = 2 if formats == {2} else 4
    return parameters * (of_base + full * (4 if storage == "float32" else 2)) + factors


def _worker_bytes(opened: Opened, parameters: int) -> int:
    """One candidate and every head, in float32."""
    heads = sum(file.stat().st_size for head in opened.heads.values() if (file := head.file).is_file())
    return parameters * 4 + heads


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
