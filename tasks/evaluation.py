"""Stage: evaluate coefficient vectors through the ledger, so that nothing is evaluated twice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.budget import Tally
from mergecore.errors import InputError
from mergecore.evaluation import Outcome
from mergecore.execution import workers_here
from mergecore.ledger import Fact, Ledger
from mergecore.study import Study
from tasks.ahead import Ahead
from tasks.artifacts import Progress
from tasks.work import Job

if TYPE_CHECKING:
    from tasks.run import Run

SLICE = 4
"""Candidates a worker between two looks at the clock."""


@dataclass
class Evaluations:
    """Facts about K candidates on some of the study's measured tasks.

    Attributes:
        coefficients_KN: the candidates, in the order they were asked for.
        metrics_KM: one column a measured task; NaN where the evaluation failed or was not wanted.
        noise_KM: standard errors; NaN where unknown.
        seconds_K: evaluation time, all tasks together.
        workers: who evaluated each candidate.
        reasons: why it failed, empty when it did not.
        fresh: (candidate, task) pairs that were not known before.
        wanted_KM: which metrics were wanted.
        places_K: of the candidates among those that were asked for.
        complete: whether all of those are here; some are not when the time for them ran out.
        on_part: whether all candidates were measured on a part of the data.
        estimated_K: which candidates were measured on no more, so that their metrics are estimates.
    """

    coefficients_KN: np.ndarray
    metrics_KM: np.ndarray
    noise_KM: np.ndarray
    seconds_K: np.ndarray
    workers: list[str]
    reasons: list[str]
    fresh: int
    wanted_KM: np.ndarray
    places_K: np.ndarray
    complete: bool
    on_part: bool
    estimated_K: np.ndarray

    def count(self, tally: Tally) -> None:
        """Add what was evaluated to a tally."""
        if self.on_part:
            tally.add(self.coefficients_KN, self.wanted_KM, part=True)
        tally.add(self.coefficients_KN[~self.estimated_K], self.wanted_KM[~self.estimated_K])


@task(name="evaluate", task_run_name="evaluate {label}", cache_policy=NO_CACHE)
def evaluate(
    run: Run,
    coefficients_KN: np.ndarray,
    measured: list[int],
    *,
    label: str,
    wanted_KM: np.ndarray | None = None,
    time_left: Callable[[], bool] | None = None,
    ahead: Ahead | None = None,
    must_succeed: bool = True,
) -> Evaluations:
    """Metrics of every candidate on every measured task, from the ledger or from the workers.

    A result is durable before it counts. Failures are results too, with a reason; an earlier run's failures are tried
    again only when the config says so.

    Args:
        run: in progress.
        coefficients_KN: the candidates.
        measured: indices into ``run.study.measured``.
        label: what is being evaluated, for people.
        wanted_KM: which metrics are wanted, if not all; the others are not evaluated.
        time_left: asked now and then whether to go on. Candidates that are not known when it says no are left out.
            Those that workers are at already are waited for.
        ahead: what workers that are free go on with, on the same tasks; chosen while the last candidates are evaluated.
        must_succeed: whether a task that fails on every candidate cannot be measured at all.

    Raises:
        InputError: it did so; the first reason is given.
    """
    study = run.study
    wanted = np.ones((len(coefficients_KN), len(measured)), dtype=bool) if wanted_KM is None else wanted_KM
    keys = _keys(study, coefficients_KN, measured, wanted)
    pairs = {(key, m) for row in keys for m, key in zip(measured, row, strict=True) if key is not None}
    places = [(key, study.measured[m].task.metric) for key, m in pairs]
    own = set(places)
    with run.stage("evaluate"), Ledger(study.ledger_path) as ledger:
        known = _known(run, ledger, keys, measured)
        jobs = _missing(study, coefficients_KN, keys, measured, known)

        def further() -> list[Job] | None:
            assert ahead is not None
            if not ahead.ready():
                return None
            asked = ahead.found()
            if asked is None:
                return []
            later = _keys(study, asked.coefficients_KN, measured, asked.wanted_KT)
            taken = _known(run, ledger, later, measured).keys() | own
            return _missing(study, asked.coefficients_KN, later, measured, taken)

        with Progress(label, unit="candidates") as progress:
            done = 0

            def record(job: Job, outcomes: list[Outcome], worker: str) -> None:
                nonlocal done
                found = _facts(study, measured, job, outcomes, worker)
                ledger.record_all(found)
                found_at = {(fact.key, metric) for fact, metric in found}
                run.ahead |= found_at - own
                done += not found_at.isdisjoint(own)
                progress.update(done, len(jobs))

            progress.update(0, len(jobs))
            for part in _slices(run, jobs, time_left):
                last = part[-1:] == jobs[-1:]
                run.pool.run(study, part, record, further if last and ahead is not None else None)
        facts = _lookup(ledger, study, keys, measured)
    run.pool.leave_to(functools.partial(_record_later, study, measured))
    fresh = sum(place in facts and (place not in known or place in run.ahead) for place in places)
    run.ahead -= own
    return _table(study, coefficients_KN, keys, facts, measured, fresh, must_succeed)


def known_candidates(study: Study, box_N2: np.ndarray) -> np.ndarray:
    """The candidates in a box that the ledger knows on all tasks of the search, failures aside; [K, N], sorted."""
    with Ledger(study.ledger_path) as ledger:
        found = [c for c in ledger.coefficients(study.matrix_key) if _in_box(c, box_N2)]
        keys: Keys = [[study.evaluation_key(c, m) for m in study.search_tasks] for c in found]
        facts = _lookup(ledger, study, keys, study.search_tasks)
    facts = {place: fact for place, fact in facts.items() if not fact.reason}
    kept = [c for c, row in zip(found, keys, strict=True) if _is_known(row, facts, study, study.search_tasks)]
    return np.array(kept, dtype=np.float64).reshape(-1, len(study.models))


def _in_box(coefficients: tuple[float, ...], box_N2: np.ndarray) -> bool:
    c_N = np.array(coefficients)
    return bool(((c_N >= box_N2[:, 0]) & (c_N <= box_N2[:, 1])).all())


Keys = list[list[str | None]]
"""Content keys, a row a candidate and a column a measured task; None where it is not wanted."""
Facts = dict[tuple[str, str], Fact]
"""(content key, metric) to fact: tasks that differ by metric only share one pass over the data, and its key."""


def _lookup(ledger: Ledger, study: Study, keys: Keys, measured: list[int]) -> Facts:
    found: Facts = {}
    for column, m in enumerate(measured):
        metric = study.measured[m].task.metric
        wanted = [key for row in keys if (key := row[column]) is not None]
        found |= {(key, metric): fact for key, fact in ledger.find(wanted, metric).items()}
    return found


def _keys(study: Study, coefficients_KN: np.ndarray, measured: list[int], wanted_KM: np.ndarray) -> Keys:
    return [
        [study.evaluation_key(c, m) if want else None for m, want in zip(measured, row, strict=True)]
        for c, row in zip(coefficients_KN, wanted_KM, strict=True)
    ]


def _known(run: Run, ledger: Ledger, keys: Keys, measured: list[int]) -> Facts:
    """What need not be evaluated: all that the ledger has, but for failures of an earlier run that is to be retried."""
    found = _lookup(ledger, run.study, keys, measured)
    if not run.study.config.execution.retry_failed:
        return found
    return {place: fact for place, fact in found.items() if not fact.reason or place in run.ahead}


def _slices(run: Run, jobs: list[Job], time_left: Callable[[], bool] | None) -> Iterator[list[Job]]:
    """The jobs, a few for each worker at a time where time is short, for as long as there is some."""
    if time_left is None:
        yield jobs
        return
    if begun := run.pool.begun(jobs):
        yield begun
        jobs = [job for job in jobs if job not in begun]
    start = 0
    while start < len(jobs) and time_left():
        size = SLICE * max(workers_here(run.study.config), run.pool.size)  # workers of a cluster show once they run
        yield jobs[start : start + size]
        start += size


def _is_known(row: list[str | None], facts: Facts, study: Study, measured: list[int]) -> bool:
    wanted = zip(row, measured, strict=True)
    return all((key, study.measured[m].task.metric) in facts for key, m in wanted if key is not None)


def _missing(
    study: Study, coefficients_KN: np.ndarray, keys: Keys, measured: list[int], known: Container[tuple[str, str]]
) -> list[Job]:
    """What the ledger does not know, each candidate and each pass over the data once."""
    unknown: dict[tuple[float, ...], dict[str, int]] = {}
    for c, row in zip(coefficients_KN.tolist(), keys, strict=True):
        wanted = {
            key: m
            for m, key in zip(measured, row, strict=True)
            if key is not None and (key, study.measured[m].task.metric) not in known
        }
        if wanted:
            unknown.setdefault(tuple(c), {}).update(wanted)
    return [Job(c, tuple(sorted(passes.values()))) for c, passes in unknown.items()]


def _metrics_of(study: Study, m: int, measured: list[int]) -> set[str]:
    """The metrics that this study takes from one pass: those of all tasks on the same data with the same evaluator."""
    return {study.measured[i].task.metric for i in measured if study.measured[i].key == study.measured[m].key}


def _facts(study: Study, measured: list[int], job: Job, outcomes: list[Outcome], worker: str) -> list[tuple[Fact, str]]:
    """What a job found, once for each metric that is taken from it."""
    return [
        (_fact(study, job, m, outcome, worker), metric)
        for m, outcome in zip(job.measured, outcomes, strict=True)
        for metric in _metrics_of(study, m, measured)
    ]


def _record_later(study: Study, measured: list[int], job: Job, outcomes: list[Outcome], worker: str) -> None:
    """What was begun for a round that never came."""
    with Ledger(study.ledger_path) as ledger:
        ledger.record_all(_facts(study, measured, job, outcomes, worker))


def _fact(study: Study, job: Job, m: int, outcome: Outcome, worker: str) -> Fact:
    return Fact(
        key=study.evaluation_key(job.coefficients, m),
        metrics=outcome.metrics,
        noise=outcome.noise,
        reason=outcome.reason,
        task=study.measured[m].label,
        coefficients=job.coefficients,
        matrix=study.matrix_key,
        examples=outcome.examples,
        seconds=outcome.seconds,
        worker=worker,
    )


def _table(
    study: Study,
    coefficients_KN: np.ndarray,
    keys: Keys,
    facts: Facts,
    measured: list[int],
    fresh: int,
    must_succeed: bool,
) -> Evaluations:
    places = [k for k, row in enumerate(keys) if _is_known(row, facts, study, measured)]
    complete, keys = len(places) == len(keys), [keys[k] for k in places]
    metrics = np.full((len(keys), len(measured)), np.nan)
    noise = metrics.copy()
    seconds = np.zeros(len(keys))
    workers, reasons = [], []
    for k, row in enumerate(keys):
        passes = {
            key: facts[key, study.measured[m].task.metric]
            for m, key in zip(measured, row, strict=True)
            if key is not None
        }
        seconds[k] = sum(fact.seconds for fact in passes.values())
        workers.append(next((fact.worker for fact in passes.values()), ""))
        reasons.append("; ".join(f"{fact.task}: {fact.reason}" for fact in passes.values() if fact.reason))
        for column, m in enumerate(measured):
            if (key := row[column]) is not None:
                name = study.measured[m].task.metric
                metrics[k, column] = facts[key, name].metrics.get(name, np.nan)
                noise[k, column] = facts[key, name].noise.get(name, np.nan)
    for column, m in enumerate(measured):
        first = next((key for row in keys if (key := row[column]) is not None), None)
        if must_succeed and complete and first is not None and not np.isfinite(metrics[:, column]).any():
            reason = facts[first, study.measured[m].task.metric].reason.rstrip(".")
            raise InputError(
                f"No evaluation of the task {study.measured[m].label!r} succeeded; the first one: {reason}."
            )
    wanted = np.array([[key is not None for key in row] for row in keys], dtype=bool).reshape(metrics.shape)
    return Evaluations(
        coefficients_KN=coefficients_KN[places],
        metrics_KM=metrics,
        noise_KM=noise,
        seconds_K=seconds,
        workers=workers,
        reasons=reasons,
        fresh=fresh,
        wanted_KM=wanted,
        places_K=np.array(places, dtype=np.intp),
        complete=complete,
        on_part=False,
        estimated_K=np.zeros(len(places), dtype=bool),
    )
