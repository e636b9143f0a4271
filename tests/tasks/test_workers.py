"""The workers' loop: further workers where there is more to do; a signal ends it wherever it arrives."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mergecore.config_file import parse_config
from mergecore.errors import EvaluationError
from mergecore.study import Study, prepare
from tasks import workers
from tasks.workers import Head, Job, WorkerPool, check_listening
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
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0 if len(names) < 2 else 2.0})
    with WorkerPool(study) as pool:
        jobs = [Job((0.3, 0.07 * i), (0, 1)) for i in range(12)]
        pool.run(study, jobs, lambda job, outcomes, worker: names.append(worker))
    assert len(names) == 12
    assert len(set(names[:2])) == 1
    assert len(set(names)) == 2


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no-such-host.invalid:6379"])
def test_a_cluster_that_is_not_there_is_told_at_once(address: str) -> None:
    with pytest.raises(OSError, match=r"refused|not known|resolution"):
        check_listening(address)


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_addresses_without_a_port_are_rays_matter(address: str) -> None:
    check_listening(address)


def test_a_head_that_no_longer_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    listening = socket.create_server(("127.0.0.1", 0))
    head = Head(f"127.0.0.1:{listening.getsockname()[1]}")
    now[0] = 60
    assert head.look()
    listening.close()
    assert head.look()  # the same second
    now[0] = 99
    assert not head.look()
    assert not head.lost
    now[0] = 101
    with pytest.raises(EvaluationError, match=r"has not answered for 40 s.*kept"):
        head.look()
    assert head.lost


def test_a_head_that_comes_back_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    now, answers = [0.0], [True]

    def listening(address: str, *, seconds: float) -> None:
        if not answers[0]:
            raise ConnectionRefusedError

    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(workers, "check_listening", listening)
    head, seen = Head("head:6379"), []
    for second, answer in [(2, True), (4, False), (40, False), (42, True), (81, False), (84, True)]:
        now[0], answers[0] = second, answer
        seen.append(head.look())
    assert seen == [True, False, False, True, False, True]


def test_nobody_looks_for_the_head_between_two_runs(
    study: Study, counted: CountedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search may think for minutes; one look that fails then is not a head that was silent for so long."""
    refused = iter([False] * 3)
    measured: list[Job] = []

    def listening(address: str, *, seconds: float) -> None:
        if not next(refused, True):
            raise ConnectionRefusedError

    monkeypatch.setattr(workers, "SIGNAL_SECONDS", 0.05)
    monkeypatch.setattr(workers, "SILENT_SECONDS", 2.0)
    with WorkerPool(study) as pool:
        pool.run(study, [Job((0.1, 0.2), (0, 1))], lambda job, outcomes, worker: measured.append(job))
        time.sleep(3.0)
        monkeypatch.setattr(workers, "check_listening", listening)
        pool.run(study, [Job((0.2, 0.2), (0, 1))], lambda job, outcomes, worker: measured.append(job))
    assert [job.coefficients for job in measured] == [(0.1, 0.2), (0.2, 0.2)]
