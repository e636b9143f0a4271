"""Stage of PWE-MoE: the routers, trained by the workers or found by content, and what they do with a preference."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.errors import InputError
from mergecore.pareto_moe.analysis import dissimilarity, routing_table
from mergecore.pareto_moe.figures import dissimilarity_figure, routing_figure, training_figure
from mergecore.pareto_moe.losses import Batch, RoutedStudy
from mergecore.pareto_moe.routed_study import route, train_routers
from mergecore.pareto_moe.training import RouterTraining
from mergecore.pareto_moe.upscaling import upscale
from mergecore.task_matrix import TaskMatrix, open_task_matrix
from tasks.artifacts import Progress
from tasks.evaluation import evaluate
from tasks.work import Gradient

if TYPE_CHECKING:
    from tasks.run import Run

LOGGED_STEPS = 200
"""How many points of a training go to MLflow, at most."""


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        routed: what was trained.
        training: told everything.
        seconds: of this run's part of it; 0 where the routers were found.
        peak_bytes: the most memory that a worker used.
    """

    routed: RoutedStudy
    training: RouterTraining
    seconds: float
    peak_bytes: int


@task(name="train routers", cache_policy=NO_CACHE)
def train(run: Run) -> tuple[Run, Trained]:
    """Algorithm 1; the run that follows measures preferences in the place of coefficients."""
    options: Any = run.study.config.search
    routed, steps = route(run.study, options), 0

    def note(training: RouterTraining) -> None:
        nonlocal steps
        steps += 1
        progress.update(training.done, options.steps)

    with run.stage("train"), Progress("training routers", unit="steps") as progress:
        begun = time.perf_counter()
        gradients = functools.partial(differentiate, run, routed)
        training, file = train_routers(routed, options, differentiate=gradients, on_step=note)
        seconds = time.perf_counter() - begun if steps else 0.0
    trained = Trained(routed, training, seconds, run.pool.peak_bytes() if steps else 0)
    log_training(run, trained)
    return run.on(run.study.routed(file)), trained


def differentiate(run: Run, routed: RoutedStudy, parts: Sequence[Batch]) -> list[tuple[float, np.ndarray]]:
    """Losses and gradients of batches, each by the next worker that is free, in the order of the batches."""
    found: list[Any] = [None] * len(parts)

    def keep(job: Gradient, result: tuple[float, np.ndarray], worker: str) -> None:
        found[job.place] = result

    run.pool.run(routed, [Gradient(batch, place) for place, batch in enumerate(parts)], keep)
    return found


@task(name="log training", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def log_training(run: Run, trained: Trained) -> None:
    """An MLflow child run: losses, non-uniformity, learning rate and routing weights by step."""
    training, plan = trained.training, trained.training.plan
    shown = _shown_steps(training)
    columns: dict[str, Any] = {"step": shown}
    columns |= {f"loss.{name}": training.losses_ST[shown, t] for t, name in enumerate(plan.tasks)}
    columns |= {"non_uniformity": training.non_uniformity_S[shown], "learning_rate": training.rate_S[shown]}
    with run.stage("tracking"):
        run.tracker.log_child(
            "training",
            {"training": pd.DataFrame(columns), "routing": _routing_by_step(training)},
            series=[name for name in columns if name != "step"],
            numbers={
                "steps": training.done,
                "parameters": training.parameter_count,
                "seconds": trained.seconds,
                "fallbacks": training.fallbacks,
            },
            params={"modules": len(plan.modules), "router": plan.router, "scaling": plan.scaling},
        )


def _routing_by_step(training: RouterTraining) -> pd.DataFrame:
    """Routing weights at equal preference, a row a kept step and module, a column a model."""
    steps, modules = len(training.routed_L), training.plan.modules
    columns: dict[str, Any] = {"step": np.repeat(training.routed_L, len(modules)), "module": list(modules) * steps}
    flat = training.routing_LGN.reshape(-1, len(training.plan.models))
    return pd.DataFrame(columns | {name: flat[:, n] for n, name in enumerate(training.plan.models)})


def _shown_steps(training: RouterTraining) -> np.ndarray:
    return np.unique(np.linspace(0, training.done - 1, min(training.done, LOGGED_STEPS)).astype(int))


def findings(run: Run, trained: Trained) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What is to be said of routers beside their front, and pictures of it.

    Args:
        run: measures preferences.
        trained: what `train` gave.
    """
    matrix = open_task_matrix(trained.routed.study.matrix_folder)
    training, plan = trained.training, trained.training.plan
    shown = _shown_steps(training)
    elements = sum(entry.size for entry in matrix.layout.entries)
    routed_elements = sum(entry.size for entry in matrix.layout.entries if plan.block_of(entry.name))
    facts: dict[str, Any] = {
        "modules": list(plan.modules),
        "models": list(plan.models),
        "tasks": list(plan.tasks),
        "scaling": plan.scaling,
        "routing": routing_table(training, plan.tasks),
        "dissimilarity": _dissimilarity(matrix),
        "table": _table(run),
        "training": {
            "scalarisation": training.options.scalarisation,
            "steps": training.done,
            "fallbacks": training.fallbacks,
            "parameters": training.parameter_count,
            "total_parameters": elements + routed_elements * len(plan.models) + training.parameter_count,
            "batch_size": training.options.batch_size,
            "seconds": trained.seconds,
            "peak_bytes": trained.peak_bytes,
            "device": run.study.device,
            "loss_steps": shown.tolist(),
            "losses": {name: training.losses_ST[shown, t].tolist() for t, name in enumerate(plan.tasks)},
        },
    }
    title = run.study.config.name
    pictures = {"routing": routing_figure(facts, title), "training": training_figure(facts, title)}
    if facts["dissimilarity"]:
        pictures["dissimilarity"] = dissimilarity_figure(facts, title)
    return {"pareto_moe": facts}, pictures


def _dissimilarity(matrix: TaskMatrix) -> dict[str, Any] | None:
    """Of attention and MLP weights by depth, where the network has both."""
    try:
        upscaling = upscale([entry.name for entry in matrix.layout.entries], "attn+mlp")
    except InputError:
        return None
    return dissimilarity(matrix, upscaling)


def _table(run: Run) -> list[dict[str, Any]]:
    """Metrics at the equal and the unit preferences, on held-out data where there is any."""
    study, tasks = run.study, len(run.study.objectives.names)
    asked_RT = np.vstack([np.full(tasks, 1 / tasks), np.eye(tasks)])
    indices = study.held_out_tasks or study.search_tasks
    found = evaluate(run, asked_RT, indices, label="equal and unit preferences")
    names = study.objectives.names
    return [
        {"preference": label, **dict(zip(names, row, strict=True))}
        for label, row in zip(("equal", *names), found.metrics_KM.tolist(), strict=True)
    ]
