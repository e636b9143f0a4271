"""The workers' loop: further workers where there is more to do; a signal ends it wherever it arrives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mergecore.config_file import parse_config
from mergecore.errors import EvaluationError
from mergecore.study import Study, prepare
from tasks import cluster, workers
from tasks.work import Job
from tasks.workers import WorkerPool
from tests.flows.conftest import CountedStudy, counted, ray_cluster

__all__ = ["counted", "ray_cluster"]  # fixtures
pytestmark = pytest.mark.usefixtures("ray_cluster")


class Ended(BaseException):
    """What a handler raises, as Prefect's does."""


@pytest.fixture
def ending() -> Iterator[None]:
    def handler(number: int, frame: object) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def study(counted: CountedStudy, home: object) -> Study:
    counted.config["tasks"][0]["args"]["sleep"] = counted.config["tasks"][1]["args"]["sleep"] = 0.1
    return prepare(parse_config(counted.config), home)  # type: ignore[arg-type]


@pytest.mark.usefixtures("ending")
@pytest.mark.parametrize("lost", [False, True])
def test_a_signal_ends_the_loop(study: Study, counted: CountedStudy, lost: bool) -> None:
    results = []

    def result(*arguments: object) -> None:
        results.append(arguments)
        if len(results) == 2:
            with suppress(*[Ended] * lost):  # as a destructor would, in the middle of anything
                os.kill(os.getpid(), signal.SIGTERM)

    jobs = [Job((0.01 * place, 0.2), (0, 1)) for place in range(20)]
    with WorkerPool(study) as pool:
        with pytest.raises(Ended):
            pool.run(study, jobs, result)
        assert len(results) < 20
        assert signal.set_wakeup_fd(-1) == -1  # as it was
        pool.run(study, jobs, result)
    assert len(results) > 20


@pytest.mark.slow
def test_workers_are_added_when_there_is_more_to_do(counted: CountedStudy, home: Path) -> None:
    slow = CountedStudy(counted.folder, sleep=0.6)  # so that the second worker starts before the first has done it all
    study = prepare(parse_config(slow.config), home)
    with WorkerPool(study) as pool:
        names: list[str] = []
        for count in (1, 8, 1):
            jobs = [Job((0.1 * count, 0.1 * i), (0, 1)) for i in range(count)]
            pool.run(study, jobs, lambda job, outcomes, worker: names.append(worker))
    assert len(names) == 10
    assert len(set(names)) == 2


@pytest.mark.slow
def test_workers_are_added_where_a_machine_joins_while_others_work(
    counted: CountedStudy, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    slow = CountedStudy(counted.folder, sleep=0.6)
    study = prepare(parse_config(slow.config), home)
    names: list[str] = []
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0 if len(names) < 2 else 2.0}}])
    with WorkerPool(study) as pool:
        jobs = [Job((0.3, 0.07 * i), (0, 1)) for i in range(12)]
        pool.run(study, jobs, lambda job, outcomes, worker: names.append(worker))
    assert len(names) == 12
    assert len(set(names[:2])) == 1
    assert len(set(names)) == 2


def test_nobody_looks_for_the_head_between_two_runs(
    study: Study, counted: CountedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search may think for minutes; one look that fails then is not a head that was silent for so long."""
    refused = iter([False] * 3)
    measured: list[Job] = []

    def listening(address: str, *, seconds: float) -> None:
        if not next(refused, True):
            raise ConnectionRefusedError

    monkeypatch.setattr(cluster, "SIGNAL_SECONDS", 0.05)
    monkeypatch.setattr(workers, "SIGNAL_SECONDS", 0.05)
    monkeypatch.setattr(cluster, "SILENT_SECONDS", 2.0)
    with WorkerPool(study) as pool:
        pool.run(study, [Job((0.1, 0.2), (0, 1))], lambda job, outcomes, worker: measured.append(job))
        time.sleep(3.0)
        monkeypatch.setattr(cluster, "check_listening", listening)
        pool.run(study, [Job((0.2, 0.2), (0, 1))], lambda job, outcomes, worker: measured.append(job))
    assert [job.coefficients for job in measured] == [(0.1, 0.2), (0.2, 0.2)]


@pytest.mark.slow
def test_what_hangs_is_ended_and_tried_again(counted: CountedStudy, home: Path) -> None:
    hanging = CountedStudy(counted.folder, hang_above=0.5)
    hanging.config["execution"] |= {"minutes_per_evaluation": 0.25}
    study = prepare(parse_config(hanging.config), home)
    found: dict[tuple[float, ...], str] = {}
    with WorkerPool(study) as pool:
        jobs = [Job((x, 0.2), (0,)) for x in (0.1, 0.9, 0.2, 0.3, 0.4)]
        pool.run(study, jobs, lambda job, outcomes, worker: found.update({job.coefficients: outcomes[0].reason}))
        assert pool.deaths == 2
    assert {c for c, reason in found.items() if not reason} == {(x, 0.2) for x in (0.1, 0.2, 0.3, 0.4)}
    assert found[0.9, 0.2] == "given up at attempt 2: no answer in 0.25 minutes (execution.minutes_per_evaluation)"
    assert sorted(hanging.calls.values()) == [1, 1, 1, 1, 2]


def test_a_cluster_that_is_too_small_is_told(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(cluster, "ROOM_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "check_listening", lambda address, *, seconds=0: None)
    monkeypatch.setattr(cluster, "tell", told.append)
    update = {"threads_per_worker": 64, "ray_address": "head:6379"}
    execution = study.config.execution.model_copy(update=update)
    large = replace(study, config=study.config.model_copy(update={"execution": execution}))
    with WorkerPool(large) as pool, pytest.raises(EvaluationError, match="has the 64 CPUs that a worker is to have"):
        pool.run(large, [Job((0.1, 0.2), (0, 1))], lambda job, outcomes, worker: None)
    assert len(told) == 1
    assert "waiting 1" in told[0]


WARM = 0.00002


def start_two(pool: WorkerPool, study: Study) -> None:
    """Until both workers run."""
    while pool.size < 2:
        jobs = [Job((WARM, place * 1e-4), (0,)) for place in range(2)]
        pool.run(study, jobs, lambda job, outcomes, worker: None)


def test_free_workers_begin_what_comes_next(counted: CountedStudy, home: Path) -> None:
    """And what dies ahead of its round is tried again; nothing is done twice when it is asked for."""
    slow = CountedStudy(counted.folder, sleep=0.5, die_once=str(counted.folder / "died"))
    study = prepare(parse_config(slow.config), home)
    following = [Job((x, 0.2), (0, 1)) for x in (0.7, 0.3)]
    early: list[int] = []
    found: list[list[float]] = []

    def record(job: Job, outcomes: object, worker: str) -> None:
        found[-1].append(job.coefficients[0])

    def ahead() -> list[Job]:
        early.append(len(found[-1]))
        return list(following)

    def run(pool: WorkerPool, jobs: list[Job], further: Callable[[], list[Job]] | None = None) -> None:
        found.append([])
        pool.run(study, jobs, record, further)

    with WorkerPool(study) as pool:
        start_two(pool, study)
        run(pool, [Job((0.2, 0.2), (0, 1))], ahead)
        run(pool, [job for job in following if job.coefficients[0] not in found[0]])
        run(pool, [Job((0.4, 0.2), (0, 1))])
        assert pool.deaths == 1
    assert early == [0]
    assert 0.2 in found[0]
    assert sorted(found[0] + found[1]) == [0.2, 0.3, 0.7]
    assert found[2] == [0.4]
    assert all(calls == 1 for line, calls in slow.calls.items() if WARM.hex() not in line)


def test_what_was_begun_for_nobody_is_kept_at_the_end(counted: CountedStudy, home: Path) -> None:
    study = prepare(parse_config(CountedStudy(counted.folder, uneven=1.5).config), home)
    kept: list[tuple[float, ...]] = []

    def keep(job: Job, outcomes: object, worker: str) -> None:
        kept.append(job.coefficients)

    def ignore(job: Job, outcomes: object, worker: str) -> None: ...

    slow = [Job((0.3, 0.20009), (0, 1)), Job((0.4, 0.20009), (0, 1))]  # 2.7 s each
    with WorkerPool(study) as pool:
        start_two(pool, study)
        pool.run(study, [Job((0.2, 0.20001), (0, 1))], ignore, lambda: slow)
        assert pool.begun([*slow, Job((0.5, 0.2), (0, 1))]) == slow[:1]
        pool.leave_to(keep)
        time.sleep(4)
    assert kept == [slow[0].coefficients]
