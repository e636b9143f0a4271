"""Routers of a study: planned from its config, trained once, then found by content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergecore.errors import InputError
from mergecore.evaluators import EVALUATORS
from mergecore.evaluators.base import Evaluator
from mergecore.pareto_moe.losses import Batch, RoutedLosses, RoutedStudy, batches, gather
from mergecore.pareto_moe.training import RouterTraining, training_key
from mergecore.pareto_moe.unloading import RouterPlan
from mergecore.pareto_moe.upscaling import upscale
from mergecore.study import Study, crunchers
from mergecore.task_matrix import open_task_matrix

if TYPE_CHECKING:
    from mergecore.config import StudyConfig
    from mergecore.search.pwe_moe import PweMoeOptions

RESERVED = ("equal", "preference")
"""What tables call the equal preference, and the column of preferences."""
Differentiate = Callable[[Sequence[Batch]], list[tuple[float, np.ndarray]]]
"""Batches to their losses and gradients in the routing weights [G, N], in the same order."""


def plan_routers(config: StudyConfig, options: PweMoeOptions, names: Iterable[str]) -> RouterPlan:
    """What gets a router.

    Args:
        config: of the study.
        options: of PWE-MoE.
        names: of the base's tensors.

    Raises:
        InputError: no module is meant, or a task has no loss that could be differentiated.
    """
    for task in config.tasks:
        if task.name in RESERVED:
            raise InputError(f"The task {task.name!r} cannot be called so where networks are made of preferences.")
        if EVALUATORS.get(task.evaluator).loss is Evaluator.loss:
            raise InputError(
                f"PWE-MoE trains on the losses of all tasks, but the evaluator {task.evaluator!r} of the task "
                f"{task.name!r} has none.",
                "Search by 'map', which only needs metrics.",
            )
    upscaling = upscale(list(names), options.modules)
    return RouterPlan(
        modules=upscaling.modules,
        owners=dict(upscaling.owners),
        tasks=tuple(task.name for task in config.tasks),
        models=tuple(model.name for model in config.models),
        router=options.router,
        options=dict(options.router_options),
        scaling=options.scaling,
    )


def route(study: Study, options: PweMoeOptions) -> RoutedStudy:
    """A study over task vectors, with what gets a router.

    Raises:
        InputError: as for `plan_routers`, or no tensor with a router differs between the models.
    """
    matrix = open_task_matrix(study.matrix_folder, key=study.matrix_key, models=study.models)
    merged = [entry.name for entry in matrix.layout.entries]
    plan = plan_routers(study.config, options, [*merged, *matrix.frozen])
    if not any(name in plan.owners for name in merged):
        raise InputError(f"None of the modules {options.modules!r} differs between the models and the base.")
    return RoutedStudy(study, plan, options.checkpoint_activations)


def new_training(routed: RoutedStudy, options: PweMoeOptions) -> tuple[RouterTraining, Path]:
    """A training at its start, and the file, named by its content, that will hold what it learns."""
    study = routed.study
    items = [study.measured[index] for index in study.training_tasks]
    sizes = tuple(item.examples for item in items)
    content: list[Any] = [[item.key for item in items], study.precision, study.device, crunchers()]
    key = training_key(
        routed.plan, options.training, matrix_key=study.matrix_key, content=content, sizes=sizes, seed=options.seed
    )
    training = RouterTraining(routed.plan, options.training, sizes=sizes, seed=options.seed)
    return training, study.home / "routers" / f"{key}.safetensors"


def train_routers(
    routed: RoutedStudy,
    options: PweMoeOptions,
    *,
    differentiate: Differentiate | None = None,
    on_step: Callable[[RouterTraining], None] | None = None,
) -> tuple[RouterTraining, Path]:
    """Train the routers, or go on with a training that was interrupted, or find what was trained already.

    Args:
        routed: the study and its modules.
        options: of PWE-MoE.
        differentiate: who computes losses and gradients; this process when missing.
        on_step: called after every step.

    Returns:
        The finished training, and the file with the routers, for `Study.routed`.

    Raises:
        NumericalError: it diverged; the last checkpoint stays as it was, and no routers are written.
    """
    training, file = new_training(routed, options)
    if file.is_file():
        training.restore(file)
        return training, file
    partial = file.with_suffix(".part")
    if partial.is_file():
        training.restore(partial)
    if differentiate is None:
        losses = RoutedLosses(routed)
        differentiate = lambda found: [losses.gradient(batch) for batch in found]  # noqa: E731
    while (step := training.ask()) is not None:
        parts = list(batches(step, options.micro_batch))
        found = differentiate(parts)
        training.tell(step, *gather(step, [(b, *result) for b, result in zip(parts, found, strict=True)]))
        if training.done % options.save_every == 0:
            training.save(partial)
        if on_step is not None:
            on_step(training)
    training.save(file)
    partial.unlink(missing_ok=True)
    return training, file


def trained_study(study: Study) -> Study:
    """The study over the routers that an earlier run of it trained.

    Args:
        study: over task vectors; its search is PWE-MoE.

    Raises:
        InputError: they are not there any more.
    """
    options: Any = study.config.search
    _, file = new_training(route(study, options), options)
    if not file.is_file():
        raise InputError(f"The trained routers of {study.config.name!r} are gone.", "Run the study again.")
    return study.routed(file)
