"""Which facts of the ledger a warm start takes: all about this study, none about anything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergecore.config_file import parse_config
from mergecore.ledger import Fact, Ledger
from mergecore.study import Study, prepare
from tasks.evaluation import known_candidates

BOX = np.array([[0.0, 1.0]] * 2)


def record(study: Study, coefficients: Sequence[float], tasks: Sequence[int] = (0, 1), *, reason: str = "") -> None:
    """As a run does it, on some of the tasks."""
    with Ledger(study.ledger_path) as ledger:
        for t in tasks:
            key, metric = study.evaluation_key(coefficients, t), study.measured[t].task.metric
            metrics = {} if reason else {metric: 0.5}
            fact = Fact(key, metrics, {}, reason, "t", tuple(coefficients), study.matrix_key, 1, 0.0, "w")
            ledger.record(fact, metric)


def found(study: Study, box_N2: np.ndarray = BOX) -> list[list[float]]:
    return known_candidates(study, box_N2).tolist()


def test_candidates_known_on_every_task_in_order(pico_config: dict[str, Any], home: Path) -> None:
    study = prepare(parse_config(pico_config), home)
    assert found(study) == []
    for c in ([0.7, 0.2], [0.1, 1.0], [0.1, 0.3]):
        record(study, c)
    record(study, [0.5, 0.5], [0])  # on one task only
    record(study, [0.6, 0.5], [0])
    record(study, [0.6, 0.5], [1], reason="died")
    record(study, [0.2, 1.1])  # outside
    assert found(study) == [[0.1, 0.3], [0.1, 1.0], [0.7, 0.2]]
    assert found(study, np.array([[0.1, 0.1001], [0.0, 2.0]])) == [[0.1, 0.3], [0.1, 1.0]]


def test_a_part_of_the_tasks_is_known_too(pico_config: dict[str, Any], home: Path) -> None:
    record(prepare(parse_config(pico_config), home), [0.7, 0.2])
    for task in pico_config["tasks"]:
        assert found(prepare(parse_config({**pico_config, "tasks": [task]}), home)) == [[0.7, 0.2]]


def test_facts_about_anything_else_are_not_taken(
    pico_config: dict[str, Any], pico_vit: dict[str, str], home: Path
) -> None:
    study = prepare(parse_config(pico_config), home)
    record(study, [0.7, 0.2])
    others: list[dict[str, Any]] = [
        {"merge": {"transform": "magnitude", "options": {"keep": 0.5}}},
        {"execution": {"precision": "bfloat16"}},
        {"models": pico_config["models"][::-1]},
        {"tasks": [pico_config["tasks"][0], {**pico_config["tasks"][1], "metric": "balanced_accuracy"}]},
        {"tasks": [{**task, "dataset": {**task["dataset"], "limit": 20}} for task in pico_config["tasks"]]},
    ]
    for changes in others:
        assert found(prepare(parse_config({**pico_config, **changes}), home)) == [], changes
    data = dict(np.load(pico_vit["data"]))
    data["y_validation"] = data["y_validation"][::-1].copy()
    np.savez(pico_vit["data"], **data)
    assert found(prepare(parse_config(pico_config), home)) == []
    assert found(study) == [[0.7, 0.2]]
