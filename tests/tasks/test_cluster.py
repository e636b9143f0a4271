"""The cluster: told at once where it is not there, given up when silent, waited for where it is too small."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import ray

from mergecore.config import ExecutionConfig
from mergecore.errors import EvaluationError
from tasks import cluster
from tasks.cluster import Cluster, Head, check_listening


def machines(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float], dead: int = 0) -> None:
    alive = [{"Alive": True, "Resources": found} for found in resources]
    monkeypatch.setattr(ray, "nodes", lambda: alive + [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}] * dead)


def made(gpus: float = 0, **options: Any) -> Cluster:
    return Cluster(ExecutionConfig(**options), gpus)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no-such-host.invalid:6379"])
def test_a_cluster_that_is_not_there_is_told_at_once(address: str) -> None:
    with pytest.raises(OSError, match=r"refused|not known|resolution"):
        check_listening(address)


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_addresses_without_a_port_are_rays_matter(address: str) -> None:
    check_listening(address)


def test_a_head_that_no_longer_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
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

    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cluster, "check_listening", listening)
    head, seen = Head("head:6379"), []
    for second, answer in [(2, True), (4, False), (40, False), (42, True), (81, False), (84, True)]:
        now[0], answers[0] = second, answer
        seen.append(head.look())
    assert seen == [True, False, False, True, False, True]


@pytest.mark.parametrize(
    ("threads", "gpus", "expected"), [(1, 0, 12), (4, 0, 3), (8, 0, 1), (1, 1, 2), (1, 2, 1), (1, 0.1, 8), (3, 0.5, 2)]
)
def test_places_are_those_of_each_machine(
    monkeypatch: pytest.MonkeyPatch, threads: int, gpus: float, expected: int
) -> None:
    """Two halves of what a worker takes, on two machines, are no place for it."""
    machines(monkeypatch, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}, {"memory": 1e9}, dead=3)
    assert made(gpus, threads_per_worker=threads).places() == expected


def test_a_machine_that_is_large_enough_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], []
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cluster, "tell", told.append)
    machines(monkeypatch, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0})
    small = made(2, threads_per_worker=4, ray_address="head:6379")
    assert small.places() == 1
    lacking = "No machine of the Ray cluster has the 4 CPUs and 2 GPUs that a worker is to have"
    assert told == [f"{lacking}; waiting 600 s for one."]
    now[0] = 599
    assert small.places() == 1
    machines(monkeypatch, {"CPU": 8.0, "GPU": 4.0})
    assert small.places() == 2
    machines(monkeypatch, {"CPU": 8.0})
    now[0] = 700
    assert small.places() == 1
    small.has_room()  # a worker came up, and its machine went
    now[0] = 1400
    assert small.places() == 1
    assert len(told) == 3
    now[0] = 2001
    with pytest.raises(EvaluationError, match=f"{lacking}, and none came in 600 s\\.") as raised:
        small.places()
    assert "execution.gpus_per_worker" in raised.value.hint


def test_nothing_comes_to_a_local_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machines(monkeypatch, {"CPU": 2.0})
    with pytest.raises(EvaluationError, match=r"has the 4 CPUs that a worker is to have\. Set"):
        made(threads_per_worker=4).places()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray is told where it is started or joined; nothing is."""
    told: dict[str, Any] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "usable_cores", lambda: 2)
    monkeypatch.setattr(cluster, "Head", lambda address: address)
    monkeypatch.setattr(cluster, "check_listening", lambda address: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", told.update)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: type("Context", (), {"gcs_address": "here:1"}))
    return told


@pytest.mark.parametrize(
    ("gpus", "options", "resources", "noted"),
    [
        (0, {}, {"CPU": 8.0, "GPU": 1.0}, True),
        (0, {}, {"CPU": 8.0}, False),
        (1, {"gpus_per_worker": 1}, {"CPU": 8.0, "GPU": 1.0}, False),
        (0, {"gpus_per_worker": 0}, {"CPU": 8.0, "GPU": 1.0}, False),
    ],
)
def test_gpus_that_nobody_asked_for_are_told(
    started: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    gpus: float,
    options: dict[str, Any],
    resources: dict[str, float],
    noted: bool,
) -> None:
    """A driver without a GPU would have its workers compute on CPUs beside idle GPUs."""
    notes: list[str] = []
    monkeypatch.setattr(cluster, "tell", notes.append)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    machines(monkeypatch, resources)
    made(gpus, **options).start()
    assert started["address"] == "head:6379"
    assert bool(notes) is noted
    assert all("'head:6379' has GPUs, but workers get none: set execution.gpus_per_worker" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2),
        ({"threads_per_worker": 64}, 64),
        ({"workers": 3}, 3),
        ({"workers": 3, "threads_per_worker": 2}, 6),
    ],
)
def test_a_local_cluster_has_room_for_what_was_asked_for(
    started: dict[str, Any], options: dict[str, Any], expected: int
) -> None:
    """A worker with more threads than there are cores is slow; without room it would wait for ever."""
    made(**options).start()
    assert started["num_cpus"] == expected
    assert started["address"] == "local"
