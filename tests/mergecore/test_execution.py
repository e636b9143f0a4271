"""Workers, devices and room: what a machine has is what a study is told of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergecore import execution
from mergecore.config import ExecutionConfig, StudyConfig
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.execution import (
    device_of,
    gpus_per_worker,
    in_this_process,
    places,
    precision_of,
    workers_here,
)


def config(**options: Any) -> StudyConfig:
    """A config of which only ``execution`` counts."""
    return parse_config(
        {
            "name": "study",
            "base": "base",
            "models": [{"name": name, "source": name} for name in ("one", "two")],
            "tasks": [
                {"name": name, "evaluator": "python", "args": {"function": f"scores:{name}"}} for name in ("one", "two")
            ],
            "execution": options,
        }
    )


def machine(monkeypatch: pytest.MonkeyPatch, *, cores: int, gpus: int) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(execution, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@given(st.integers(1, 64), st.integers(1, 16))
def test_every_part_of_what_there_is_finds_a_place(parts: int, whole: int) -> None:
    """1 // 0.1 is 9 in floating point."""
    assert places(whole, 1 / parts) == whole * parts


@pytest.mark.parametrize(("available", "each", "expected"), [(16, 3, 5), (2, 64, 0), (1, 0.3, 3), (0, 1, 0), (8, 8, 1)])
def test_places(available: float, each: float, expected: int) -> None:
    assert places(available, each) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 16),
        ({"threads_per_worker": 3}, 5),
        ({"threads_per_worker": 64}, 1),
        ({"workers": 40}, 40),
        ({"workers": 40, "threads_per_worker": 8}, 40),
    ],
)
def test_workers_of_a_machine_without_gpus(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: int
) -> None:
    machine(monkeypatch, cores=16, gpus=0)
    assert workers_here(config(**options)) == expected
    assert device_of(config(**options)) == "cpu"
    assert precision_of(config(**options)) == "float32"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2),
        ({"gpus_per_worker": 0.5}, 4),
        ({"gpus_per_worker": 0.1}, 16),
        ({"gpus_per_worker": 2}, 1),
        ({"gpus_per_worker": 0}, 16),
        ({"workers": 1, "gpus_per_worker": 0.5}, 1),
        ({"workers": 8}, 2),
        ({"threads_per_worker": 16}, 1),
        ({"ray_address": "head:6379", "gpus_per_worker": 1}, 16),
    ],
)
def test_no_more_workers_than_gpus_have_room_for(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: int
) -> None:
    machine(monkeypatch, cores=16, gpus=2)
    assert workers_here(config(**options)) == expected


def test_auto_is_a_gpu_each_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cores=16, gpus=2)
    assert gpus_per_worker(config()) == 1
    assert precision_of(config()) == "bfloat16"
    assert gpus_per_worker(config(ray_address="head:6379")) == 1
    machine(monkeypatch, cores=16, gpus=0)
    assert gpus_per_worker(config()) == 0


@pytest.mark.parametrize(("gpus", "asked", "found"), [(0, 1, "no GPU"), (0, 0.5, "no GPU"), (2, 4, "only 2")])
def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch, gpus: int, asked: float, found: str) -> None:
    machine(monkeypatch, cores=16, gpus=gpus)
    with pytest.raises(InputError, match=f"gpus_per_worker is {asked:g}, but torch finds {found} on this machine"):
        device_of(config(gpus_per_worker=asked))
    assert device_of(config(gpus_per_worker=asked, ray_address="head:6379")) == "cuda"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert device_of(config(gpus_per_worker=asked)) == "cuda"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(InputError):
        device_of(config(gpus_per_worker=asked))


@pytest.mark.parametrize("gpus", [0, 0.25, 1, 4])
def test_parts_of_a_gpu_or_whole_ones(gpus: float) -> None:
    assert ExecutionConfig(gpus_per_worker=gpus).gpus_per_worker == gpus


def test_not_one_and_a_half_gpus() -> None:
    """Ray has none of it."""
    with pytest.raises(InputError, match=r"execution\.gpus_per_worker.*a part of a GPU or whole ones, not 1\.5"):
        config(gpus_per_worker=1.5)


def test_what_was_measured_on_gpus_is_not_measured_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may have none, where its cluster has some."""
    machine(monkeypatch, cores=2, gpus=0)
    assert in_this_process("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="measured on GPUs, and this machine has none"):
        in_this_process(device_of(config(gpus_per_worker=1, ray_address="head:6379")))
    machine(monkeypatch, cores=2, gpus=1)
    assert in_this_process("cuda") == torch.device("cuda")
