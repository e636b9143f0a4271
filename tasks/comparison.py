"""Stages of a comparison: the first N models, one method's task vectors, its choices measured, the tables."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.comparison.config import MethodConfig, ReferenceConfig
from mergecore.comparison.folder import comparison_tables, write_comparison
from mergecore.comparison.methods import (
    Comparison,
    MethodResult,
    Points,
    method_study,
    preferences_of,
    reference_study,
    scale_of,
)
from mergecore.comparison.tables import counts, kind_of_data, measured, points_table, preference_table
from mergecore.contenders.base import Contender
from mergecore.errors import InputError, NumericalError
from mergecore.fronts.indicators import worst_metrics
from mergecore.fronts.spread import spread_points
from mergecore.pictures.fronts import methods_figure
from mergecore.run_record import TaskInfo
from mergecore.search import Front
from mergecore.study import Opened, Study, open_study, prepare, versions
from mergecore.task_matrix import build_seconds
from tasks.artifacts import Progress, publish_comparison
from tasks.evaluation import evaluate
from tasks.pareto_moe import differentiate

if TYPE_CHECKING:
    from tasks.run import Run


@dataclass(frozen=True)
class Heat:
    """The part of a comparison that merges the first N models.

    Attributes:
        run: on the study over their task vectors as they are.
        opened: their checkpoints.
        preferences_RT: the equal preference, then those drawn.
    """

    run: Run
    opened: Opened
    preferences_RT: np.ndarray

    @property
    def count(self) -> int:
        """N."""
        return len(self.run.study.config.models)


def new_comparison(run: Run) -> Comparison:
    """An empty record of the comparison."""
    config = run.study.config
    return Comparison(
        name=config.name,
        models=[model.name for model in config.models],
        tasks=[
            TaskInfo(name=t.name, metric=t.metric, maximise=t.maximise, lower=t.bounds[0], upper=t.bounds[1])
            for t in config.tasks
        ],
        config={
            **config.model_dump(mode="json"),
            "resolved": {"fingerprints": run.study.fingerprints, "versions": versions()},
        },
    )


@task(name="prepare models", task_run_name="prepare {count} models", cache_policy=NO_CACHE)
def enter_heat(run: Run, comparison: Comparison, count: int) -> Heat:
    """Open the first models, and measure each of them on all of their tasks, which the hypervolume is judged by."""
    config = run.study.config.first(count)
    opened = open_study(config, run.study.home)
    with run.stage("task vectors"), Progress(f"{count} models: task vectors", unit="tensors") as progress:
        plain = run.on(prepare(config, run.study.home, opened=opened, progress=progress.update))
    heat = Heat(plain, opened, preferences_of(config))
    comparison.preferences[count] = heat.preferences_RT
    sign_T = np.where(plain.study.objectives.maximise, 1.0, -1.0)
    for kind, indices in (("real", plain.study.search_tasks), ("test", plain.study.held_out_tasks)):
        if indices:
            found = evaluate(plain, np.eye(count), indices, label=f"{count} models: each alone, {kind}")
            gains_NT = found.metrics_KM * sign_T
            best_T = np.nanmax(gains_NT, axis=0)
            own = [best_T[t] if n is None else gains_NT[n, t] for t, n in enumerate(config.owners)]
            comparison.worst[count, kind] = worst_metrics(found.metrics_KM, maximise=plain.study.objectives.maximise)
            comparison.own[count, kind] = np.array(own) * sign_T
    return heat


def compete(heat: Heat, comparison: Comparison, method: MethodConfig | ReferenceConfig) -> MethodResult:
    """One method: its task vectors, what it asks for, its choices measured; why not, when it cannot be had."""
    label = method.label if isinstance(method, MethodConfig) else method.name
    try:
        result = _result(heat, comparison, method, label)
    except (InputError, NumericalError) as error:
        result = MethodResult(method=label, models=heat.count, reason=str(error))
    comparison.results.append(result)
    if result.chosen is not None:
        log_method(heat.run, comparison, result)
    return result


def _result(heat: Heat, comparison: Comparison, method: MethodConfig | ReferenceConfig, label: str) -> MethodResult:
    study, contender = build(heat, method, label=f"{heat.count} models: {label}")
    run = heat.run.on(study)
    pairs, seconds = answer(run, contender, label=f"{heat.count} models: {label}")
    chosen, front = measure(run, contender, heat.preferences_RT, label=f"{heat.count} models: {label}")
    places = {task.name: t for t, task in enumerate(comparison.tasks)}
    return MethodResult(
        method=label,
        models=heat.count,
        bound=contender.bound or isinstance(method, ReferenceConfig),
        columns=study.models,
        tasks=tuple(places[name] for name in study.objectives.names),
        chosen=chosen,
        front=front,
        evaluations=pairs,
        seconds=seconds,
        build_seconds=build_seconds(study.matrix_folder),
    )


@task(name="task vectors", task_run_name="task vectors, {label}", cache_policy=NO_CACHE)
def build(heat: Heat, method: MethodConfig | ReferenceConfig, *, label: str) -> tuple[Study, Contender]:
    """The method's task vectors, built or found by content."""
    plain = heat.run.study
    with heat.run.stage("task vectors"), Progress(f"{label}: task vectors", unit="steps") as progress:
        if isinstance(method, ReferenceConfig):
            return reference_study(method, plain, heat.opened, progress=progress.update)
        gradients = functools.partial(functools.partial, differentiate, heat.run)
        return method_study(method, plain, heat.opened, progress=progress.update, differentiate=gradients)


def answer(run: Run, contender: Contender, *, label: str) -> tuple[int, float]:
    """Ask, evaluate and tell until the method wants no more: (coefficients, task) pairs, and their seconds."""
    pairs, seconds, rounds = 0, 0.0, 0
    while len(asked_KN := contender.ask()):
        found = evaluate(run, asked_KN, run.study.search_tasks, label=f"{label}, round {rounds}")
        contender.tell(found.coefficients_KN, found.metrics_KM)
        pairs += len(np.unique(asked_KN, axis=0)) * found.metrics_KM.shape[1]
        seconds += float(found.seconds_K.sum())
        rounds += 1
    return pairs, seconds


def measure(run: Run, contender: Contender, preferences_RT: np.ndarray, *, label: str) -> tuple[Points, Points | None]:
    """The choices on held-out data where there is any, and on both kinds of data points that stand for the front."""
    study, tasks = run.study, len(run.study.config.tasks)
    with run.stage("front"):
        chosen, predicted_RT = contender.choose(preferences_RT, scale=scale_of(study.config))
        front = contender.front()
    wanted = {"real": study.search_tasks, "test": study.held_out_tasks}
    flat = chosen.reshape(-1, chosen.shape[-1])
    points = {kind: np.full((len(flat), tasks), np.nan) for kind in wanted}
    kind = "test" if wanted["test"] else "real"
    points[kind] = evaluate(run, flat, wanted[kind], label=f"{label}, choices").metrics_KM
    found = Points(chosen, predicted_RT, _own(points["real"], chosen), _own(points["test"], chosen))
    if front is None:
        return found, None
    verified = _stand_for(front, study)
    metrics = {"real": front.real_PT.copy(), "test": np.full_like(front.real_PT, np.nan)}
    for kind, indices in wanted.items():
        if indices and len(verified):
            front_KN = front.coefficients_PN[verified]
            metrics[kind][verified] = evaluate(run, front_KN, indices, label=f"{label}, front, {kind}").metrics_KM
    return found, Points(front.coefficients_PN, front.predicted_PT, metrics["real"], metrics["test"])


def _stand_for(front: Front, study: Study) -> np.ndarray:
    known_PT = np.where(np.isfinite(front.real_PT), front.real_PT, front.predicted_PT)
    return spread_points(known_PT, study.config.front.verify, maximise=study.objectives.maximise)


def _own(metrics: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[R, T] of what was measured on the chosen candidates, each task's own where tasks have models of their own."""
    if chosen.ndim == 2:
        return metrics
    tasks = chosen.shape[1]
    return np.diagonal(metrics.reshape(-1, tasks, tasks), axis1=1, axis2=2).copy()


@task(name="log method", task_run_name="log {result.method}", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def log_method(run: Run, comparison: Comparison, result: MethodResult) -> None:
    """An MLflow child run: the method's points, its counts, its metrics at equal preference."""
    alone = Comparison(
        name=comparison.name, models=comparison.models, tasks=comparison.tasks, preferences=comparison.preferences
    )
    alone.results = [result]
    assert result.chosen is not None
    names = run.study.objectives.names
    equal_T = measured(result.chosen, kind_of_data(alone))[0]
    equal = dict(zip(names, equal_T.tolist(), strict=True))
    numbers: dict[str, float] = {f"equal preference/{name}": value for name, value in equal.items()}
    numbers |= {"evaluations": result.evaluations, "seconds": result.seconds, "build_seconds": result.build_seconds}
    with run.stage("tracking"):
        run.tracker.log_child(
            f"{result.models} models: {result.method}",
            {"front": points_table(alone)},
            numbers=numbers,
            params={"method": result.method, "models": result.models},
        )


@task(name="save and log comparison", cache_policy=NO_CACHE)
def save_comparison(run: Run, comparison: Comparison) -> None:
    """The folder, MLflow's tables and pictures, Prefect's artifacts.

    Raises:
        InputError: no method gave anything; the first reason is given.
    """
    if not any(result.chosen is not None for result in comparison.results):
        raise InputError(f"No method could be compared; the first one: {comparison.results[0].reason}")
    comparison.summary = {
        "method": "compare",
        "study": run.study.digest,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "counts": counts(comparison),
        "timings": {**run.timings, "total": time.time() - run.started},
        "decoded_examples": run.decoded + run.pool.decoded,
        "worker_deaths": run.pool.deaths,
        "preference_sums": _sums(comparison),
        "tracking": {"uri": run.tracker.uri, "run_id": run.tracker.run_id, "open": run.tracker.address},
        "home": str(run.study.home),
    }
    pictures = {f"front-{count}": methods_figure(comparison, count) for count in counts(comparison)}
    write_comparison(run.folder, comparison, pictures)
    with run.stage("tracking"):
        run.tracker.log_result(comparison.summary, comparison_tables(comparison), pictures, run.folder)
    report = str((run.folder / "report.html").resolve())
    publish_comparison(comparison, pictures, report=report, tracking=run.tracker.address)


def _sums(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Number of models to method to its mean preference-weighted sum."""
    table = preference_table(comparison).set_index("method")
    return {str(count): {str(k): v for k, v in table[f"{count} mean"].dropna().items()} for count in counts(comparison)}
