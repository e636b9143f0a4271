"""What `check` says without evaluating: sizes, counts, times, notes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from mergecore.config_file import parse_config
from mergecore.evaluators.batching import Batcher, estimating, is_estimating
from mergecore.preflight import check
from mergecore.study import prepare


def test_sizes_and_counts(pico_config: dict, home: Path) -> None:
    config = parse_config(pico_config)
    found = check(config, home)
    study = prepare(config, home)
    on_disk = sum(file.stat().st_size for file in study.matrix_folder.iterdir())
    assert found.matrix_bytes <= on_disk * 1.2 + 10_000  # beside padding and the layout's text, no more than stored
    assert found.matrix_bytes >= 0.5 * on_disk - 10_000
    assert (found.models, found.tasks) == (2, len(config.tasks))
    assert found.evaluations >= found.coefficient_vectors * found.tasks
    assert not (home / "ledger.sqlite").exists()


def test_every_task_is_timed_and_added_up(pico_config: dict, home: Path) -> None:
    config = parse_config(pico_config)
    found = check(config, home)
    assert set(found.seconds) == {task.name for task in config.tasks}
    assert all(seconds > 0 for seconds in found.seconds.values())
    expected = sum(found.seconds.values()) * found.coefficient_vectors / found.workers
    assert found.total_seconds == pytest.approx(expected)
    assert not is_estimating()


def test_one_batch_stands_for_all_while_estimating() -> None:
    calls: list[tuple[int, int]] = []

    def work(start: int, stop: int) -> torch.Tensor:
        calls.append((start, stop))
        time.sleep(0.002)
        return torch.zeros(stop - start)

    batcher = Batcher(4, example_bytes=1, device=torch.device("cpu"))
    with estimating() as estimate:
        results = batcher.map(103, work)
    assert sum(map(len, results)) == 103
    assert calls == [(0, 4), (0, 4), (100, 103)]
    assert estimate.seconds >= 0.002 * 103 / 4  # a sleep is never shorter
    calls.clear()
    assert sum(map(len, batcher.map(103, work))) == 103
    assert len(calls) == 26


def test_functions_of_the_users_own_are_not_timed(pico_config: dict, home: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "slow_of_test.py").write_text("def score(candidate):\n    raise RuntimeError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"name": "own", "evaluator": "python", "metric": "score", "direction": "maximize"}
    tasks = [pico_config["tasks"][0], {**own, "args": {"function": "slow_of_test:score"}}]
    if "test_split" in (tasks[0].get("dataset") or {}):
        tasks[0] = {**tasks[0], "dataset": {k: v for k, v in tasks[0]["dataset"].items() if k != "test_split"}}
    found = check(parse_config({**pico_config, "tasks": tasks}), home)
    assert set(found.seconds) == {tasks[0]["name"]}
    assert found.total_seconds is None
