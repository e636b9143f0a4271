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
    now = [0.0]
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
    machines(monkeypatch, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0})
    small = made(2, threads_per_worker=4)
    with pytest.warns(UserWarning, match="No machine of the Ray cluster has the 4 CPUs and 2 GPUs .* waiting 600 s"):
        assert small.places() == 1
    now[0] = 599
    assert small.places() == 1
    machines(monkeypatch, {"CPU": 8.0, "GPU": 4.0})
    assert small.places() == 2
    machines(monkeypatch, {"CPU": 8.0})
    now[0] = 700
    with pytest.warns(UserWarning, match="waiting"):
        assert small.places() == 1
    now[0] = 1301
    with pytest.raises(EvaluationError, match=r"that a worker is to have, and none came in 600 s\.") as told:
        small.places()
    assert "execution.gpus_per_worker" in told.value.hint


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
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: int
) -> None:
    """A worker with more threads than there are cores is slow; without room it would wait for ever."""
    told: dict[str, Any] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "usable_cores", lambda: 2)
    monkeypatch.setattr(cluster, "Head", lambda address: address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", told.update)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: type("Context", (), {"gcs_address": "here:1"}))
    made(**options).start()
    assert told["num_cpus"] == expected
    assert told["address"] is None
