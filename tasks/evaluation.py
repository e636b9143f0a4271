"""Stage: evaluate coefficient vectors through the ledger, so that nothing is evaluated twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from tasks.artifacts import Progress
from tasks.workers import Job

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

    Raises:
        InputError: some task failed on every candidate; the first reason is given.
    """
    study = run.study
    wanted = np.ones((len(coefficients_KN), len(measured)), dtype=bool) if wanted_KM is None else wanted_KM
    keys = [
        [study.evaluation_key(c, m) if want else None for m, want in zip(measured, row, strict=True)]
        for c, row in zip(coefficients_KN, wanted, strict=True)
    ]
    with run.stage("evaluate"), Ledger(study.ledger_path) as ledger:
        known = _lookup(ledger, study, keys, measured)
        if study.config.execution.retry_failed:
            known = {place: fact for place, fact in known.items() if not fact.reason}
        jobs = _missing(study, coefficients_KN, keys, measured, known)
        with Progress(label, unit="candidates") as progress:
            done = 0

            def record(job: Job, outcomes: list[Outcome], worker: str) -> None:
                nonlocal done
                found = [
                    (m, _fact(study, job, m, outcome, worker))
                    for m, outcome in zip(job.measured, outcomes, strict=True)
                ]
                ledger.record_all((fact, metric) for m, fact in found for metric in _metrics_of(study, m, measured))
                done += 1
                progress.update(done, len(jobs))

            progress.update(0, len(jobs))
            for part in _slices(run, jobs, time_left):
                run.pool.run(study, part, record)
        facts = _lookup(ledger, study, keys, measured)
    places = {(key, m) for row in keys for m, key in zip(measured, row, strict=True) if key is not None}
    fresh = sum((place := (key, study.measured[m].task.metric)) in facts and place not in known for key, m in places)
    return _table(study, coefficients_KN, keys, facts, measured, fresh)


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


def _slices(run: Run, jobs: list[Job], time_left: Callable[[], bool] | None) -> Iterator[list[Job]]:
    """The jobs, a few for each worker at a time where time is short, for as long as there is some."""
    if time_left is None:
        yield jobs
        return
    start = 0
    while start < len(jobs) and time_left():
        size = SLICE * max(workers_here(run.study.config), run.pool.size)  # workers of a cluster show once they run
        yield jobs[start : start + size]
        start += size


def _is_known(row: list[str | None], facts: Facts, study: Study, measured: list[int]) -> bool:
    wanted = zip(row, measured, strict=True)
    return all((key, study.measured[m].task.metric) in facts for key, m in wanted if key is not None)


def _missing(study: Study, coefficients_KN: np.ndarray, keys: Keys, measured: list[int], known: Facts) -> list[Job]:
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
        if first is not None and not np.isfinite(metrics[:, column]).any():
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
