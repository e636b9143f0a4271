"""Stages of a search: ask, find the front, choose what to verify."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.budget import ALL_SAMPLES, MINUTES, PAIRS, Spending, check_budget
from mergecore.errors import EvaluationError
from mergecore.fronts.spread import spread_points
from mergecore.search import Front, Search
from tasks.evaluation import Evaluations, evaluate, known_candidates

if TYPE_CHECKING:
    from tasks.run import Run

WARM_START = "warm start"


def evaluate_rounds(run: Run, search: Search, *, clock: Callable[[], float] = time.time) -> list[Evaluations]:
    """Ask, evaluate and tell until the method wants no more or its budget is spent; ``run.spent`` says which.

    Each round is a task and an MLflow child run. A round that the budget's pairs do not allow is cut to its first
    candidates, one that time does not allow to those that were evaluated by then.

    Raises:
        InputError: no front can be found within the budget.
        EvaluationError: time ran out before one could be found.
    """
    study = run.study
    budget = study.config.budget
    check_budget(budget, search)
    spending = Spending(budget, started=run.started, clock=clock)
    warm = _warm_start(run, search, spending) if budget.warm_start else []
    rounds = [*warm]
    ended = _over(search, spending)
    while not ended:
        asked_KN = search.ask()
        if not len(asked_KN):
            ended = ALL_SAMPLES
            break
        everything = np.ones((len(asked_KN), len(search.objectives.names)), dtype=bool)
        wanted_KT = everything if search.wanted_KT is None else search.wanted_KT
        fitting = spending.fitting(asked_KN, wanted_KT)
        label = f"round {len(rounds)}"
        found = evaluate(
            run,
            asked_KN[:fitting],
            study.search_tasks,
            label=label,
            wanted_KM=wanted_KT[:fitting],
            time_left=spending.time_left if budget.minutes else None,
        )
        if len(found.coefficients_KN):
            _take(run, search, spending, label, found)
            rounds.append(found)
        ended = MINUTES if not found.complete else PAIRS if fitting < len(asked_KN) else _over(search, spending)
    if ended == MINUTES and (not search.divisible or len(search.coefficients_KN) < search.fewest):
        raise EvaluationError(
            f"The {budget.minutes:g} minutes of budget.minutes were over before a front could be found.",
            "Run again to continue; everything that was evaluated is kept.",
        )
    run.spent = {
        "pairs": spending.tally.pairs,
        "minutes": spending.minutes,
        "ended": ended,
        "warm_start": sum(len(found.coefficients_KN) for found in warm),
    }
    return rounds


def _warm_start(run: Run, search: Search, spending: Spending) -> list[Evaluations]:
    """What earlier runs know, as a first round that costs nothing; none where they know nothing."""
    known_KN = known_candidates(run.study, search.box_N2)
    if not len(known_KN):
        return []
    found = evaluate(run, known_KN, run.study.search_tasks, label=WARM_START)
    _take(run, search, spending, WARM_START, found)
    return [found]


def _take(run: Run, search: Search, spending: Spending, label: str, found: Evaluations) -> None:
    spending.tally.add(found.coefficients_KN, found.wanted_KM)
    search.tell(found.coefficients_KN, found.metrics_KM, found.noise_KM)
    log_round(run, label, found)


def _over(search: Search, spending: Spending) -> str:
    """Why there is no further round; empty when there is one. Asking can take long, so this is looked at before."""
    if not search.divisible:
        return "" if spending.time_left() else MINUTES
    bound = spending.over(len(search.objectives.names))
    return ALL_SAMPLES if bound and len(search.coefficients_KN) >= search.budget else bound


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
