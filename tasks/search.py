"""Stages of a search: ask, find the front, choose what to verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.fronts.spread import spread_points
from mergecore.search import Front, Search
from tasks.evaluation import Evaluations, evaluate

if TYPE_CHECKING:
    from tasks.run import Run


def evaluate_rounds(run: Run, search: Search) -> list[Evaluations]:
    """Ask, evaluate and tell until the method wants no more; each round is a task and an MLflow child run."""
    rounds: list[Evaluations] = []
    while len(asked_KN := search.ask()):
        label = f"round {len(rounds)}"
        found = evaluate(run, asked_KN, run.study.search_tasks, label=label, wanted_KM=search.wanted_KT)
        search.tell(found.coefficients_KN, found.metrics_KM, found.noise_KM)
        log_round(run, label, found)
        rounds.append(found)
    return rounds


@task(name="log round", task_run_name="log {label}", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def log_round(run: Run, label: str, found: Evaluations) -> None:
    """Metrics of one round to MLflow."""
    columns = {f"c.{model}": found.coefficients_KN[:, n] for n, model in enumerate(run.study.models)}
    columns |= {name: found.metrics_KM[:, t] for t, name in enumerate(run.study.objectives.names)}
    with run.stage("tracking"):
        run.tracker.log_child(
            label,
            {"evaluations": pd.DataFrame(columns)},
            series=run.study.objectives.names,
            numbers={
                "evaluations": len(found.coefficients_KN),
                "fresh_evaluations": found.fresh,
                "seconds": float(found.seconds_K.sum()),
            },
        )


@task(name="find front", cache_policy=NO_CACHE)
def find_front(run: Run, search: Search) -> Front:
    """Surrogates and the front on them (MAP), or the non-dominated evaluations (direct search); no evaluation."""
    with run.stage("front"):
        return search.front(run.study.config.front)


@task(name="choose points to verify", cache_policy=NO_CACHE)
def choose_verified(run: Run, front: Front) -> np.ndarray:
    """Indices of the points that stand for the front: each task's best, the compromise, then the farthest apart."""
    metrics = np.where(np.isfinite(front.real_PT), front.real_PT, front.predicted_PT)
    return spread_points(metrics, run.study.config.front.verify, maximise=run.study.objectives.maximise)
