"""Stages of a search: ask, find the front, choose what to verify."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.budget import ALL_SAMPLES, MINUTES, PAIRS, BudgetConfig, Spending, check_budget
from mergecore.errors import EvaluationError
from mergecore.fidelity import Correction
from mergecore.fronts.spread import spread_points
from mergecore.measured import shares
from mergecore.search import Front, Search
from mergecore.search.convergence import Convergence, Round
from tasks.ahead import Ahead, Asked
from tasks.evaluation import Evaluations, evaluate, known_candidates
from tasks.parts import evaluate_by_parts

if TYPE_CHECKING:
    from mergecore.fronts.config import FrontConfig
    from tasks.run import Run

WARM_START = "warm start"
ROUND = 2
"""Candidates, for each of N + 1, after which a search that asks for all at once is looked at."""


def evaluate_rounds(run: Run, search: Search, *, clock: Callable[[], float] = time.time) -> list[Evaluations]:
    """All rounds of `each_round`."""
    return list(each_round(run, search, clock=clock))


def each_round(run: Run, search: Search, *, clock: Callable[[], float] = time.time) -> Iterator[Evaluations]:
    """Ask, evaluate and tell until the method wants no more, its budget is spent, or more would change nothing.

    Yields each round once the search was told of it; after the last, ``run.spent`` says why it was the last. Each round
    is a task and an MLflow child run. A round that the budget's pairs do not allow is cut to its first candidates, one
    that time does not allow to those that were evaluated by then. A method that would ask for everything at once is
    given rounds where ``budget.stop`` may end it. Where a method asks ahead, workers that are free begin with the next
    round, and one that was begun is finished even if the one before it should have been the last.

    Raises:
        InputError: no front can be found within the budget.
        EvaluationError: time ran out before one could be found.
    """
    study = run.study
    budget = study.config.budget
    share_T = shares(study.measured)
    check_budget(budget, search, share_T)
    spending = Spending(budget, share_T=share_T, started=run.started, clock=clock)
    correction = Correction(share_T, search.objectives)
    in_rounds = search.divisible and (not search.at_once or budget.stop is not None)
    convergence = Convergence(search, _coarse(study.config.front)) if in_rounds else None
    warm = _warm_start(run, search, spending, convergence) if budget.warm_start else []
    yield from warm
    number = len(warm)
    time_left = spending.time_left if budget.minutes else None
    ended, further = _over(search, spending), None
    while further is not None or not ended:
        asked = further or _ask(search, spending, budget)
        if asked is None:
            ended = ALL_SAMPLES
            break
        ahead = None
        if search.asks_ahead and not ended and not asked.cut:
            ahead = Ahead(functools.partial(_ask, search, spending, budget, pending=asked))
        candidates_KN, label = asked.coefficients_KN, asked.label or f"round {number}"
        if budget.share == 1:
            found = evaluate(
                run,
                candidates_KN,
                study.search_tasks,
                label=label,
                wanted_KM=asked.wanted_KT,
                time_left=time_left,
                ahead=ahead,
                must_succeed=not np.isfinite(search.metrics_KT).any(axis=0).all(),
            )
        else:
            found = evaluate_by_parts(run, candidates_KN, correction, label=label, time_left=time_left)
        # before this round is told, so that what is asked for does not depend on how long anything took
        further = ahead.result() if ahead is not None and found.complete else None
        if len(found.coefficients_KN):
            _take(run, search, spending, label, found, convergence)
            number += 1
            yield found
        if not ended:
            ended = MINUTES if not found.complete else PAIRS if asked.cut else _over(search, spending)
        if not ended and convergence is not None and budget.stop is not None:
            ended = convergence.enough(budget.stop)
    if ended == MINUTES and (not search.divisible or len(search.coefficients_KN) < search.fewest):
        raise EvaluationError(
            f"The {budget.minutes:g} minutes of budget.minutes were over before a front could be found.",
            "Run again to continue; everything that was evaluated is kept.",
        )
    run.spent = {
        "pairs": spending.tally.pairs,
        "full_pairs": spending.tally.full_pairs,
        "minutes": spending.minutes,
        "ended": ended,
        "warm_start": sum(len(found.coefficients_KN) for found in warm),
    }


def _ask(search: Search, spending: Spending, budget: BudgetConfig, pending: Asked | None = None) -> Asked | None:
    """The next round; None when the search wants no more, or waits for the one that is pending."""
    before = None if pending is None else (pending.coefficients_KN, pending.wanted_KT)
    if before is not None and spending.over(before):
        return None
    asked_KN = search.ask() if pending is None else search.ask_ahead(pending.coefficients_KN)
    if not len(asked_KN):
        return None
    everything = np.ones((len(asked_KN), len(search.objectives.names)), dtype=bool)
    wanted_KT = everything if search.wanted_KT is None else search.wanted_KT
    if search.at_once and budget.stop is not None:
        asked_KN = asked_KN[: ROUND * (search.models + 1)]
        wanted_KT = wanted_KT[: len(asked_KN)]
    fitting = spending.fitting(asked_KN, wanted_KT, before)
    return Asked(asked_KN[:fitting], wanted_KT[:fitting], search.label, cut=fitting < len(asked_KN))


def _coarse(front: FrontConfig) -> FrontConfig:
    """Quick fronts, to see how they move."""
    return front.model_copy(update={"population": min(front.population, 60), "generations": min(front.generations, 40)})


def _warm_start(run: Run, search: Search, spending: Spending, convergence: Convergence | None) -> list[Evaluations]:
    """What earlier runs know, as a first round that costs nothing; none where they know nothing."""
    known_KN = known_candidates(run.study, search.box_N2)
    if not len(known_KN):
        return []
    found = evaluate(run, known_KN, run.study.search_tasks, label=WARM_START)
    _take(run, search, spending, WARM_START, found, convergence)
    return [found]


def _take(
    run: Run, search: Search, spending: Spending, label: str, found: Evaluations, convergence: Convergence | None
) -> None:
    found.count(spending.tally)
    search.tell(found.coefficients_KN, found.metrics_KM, found.noise_KM)
    with run.stage("front"):
        brought = convergence.observe() if convergence is not None else None
    if brought is not None:
        run.convergence.append({**brought.numbers(), "front": brought.front()})
    log_round(run, label, found, brought, len(run.convergence))


def _over(search: Search, spending: Spending) -> str:
    """Why there is no further round; empty when there is one. Asking can take long, so this is looked at before."""
    if not search.divisible:
        return "" if spending.time_left() else MINUTES
    bound = spending.over()
    return ALL_SAMPLES if bound and len(search.coefficients_KN) >= search.budget else bound


@task(name="log round", task_run_name="log {label}", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def log_round(run: Run, label: str, found: Evaluations, brought: Round | None = None, step: int = 0) -> None:
    """One round to MLflow: its evaluations, and the front and what else it brought where a search has rounds."""
    columns = {f"c.{model}": found.coefficients_KN[:, n] for n, model in enumerate(run.study.models)}
    columns |= {name: found.metrics_KM[:, t] for t, name in enumerate(run.study.objectives.names)}
    tables = {"evaluations": pd.DataFrame(columns)}
    numbers = {
        "evaluations": len(found.coefficients_KN),
        "fresh_evaluations": found.fresh,
        "estimated": int(found.estimated_K.sum()),
        "seconds": float(found.seconds_K.sum()),
    }
    with run.stage("tracking"):
        if brought is not None:
            tables["front"] = _round_front(run, brought)
            steps = {name: value for name, value in brought.numbers().items() if isinstance(value, float)}
            numbers |= steps
            run.tracker.log_step({f"round.{name}": value for name, value in steps.items()}, step)
        run.tracker.log_child(label, tables, series=run.study.objectives.names, numbers=numbers)


def _round_front(run: Run, brought: Round) -> pd.DataFrame:
    columns = {f"c.{model}": brought.coefficients_PN[:, n] for n, model in enumerate(run.study.models)}
    return pd.DataFrame(columns | {name: brought.metrics_PT[:, t] for t, name in enumerate(run.study.objectives.names)})


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
