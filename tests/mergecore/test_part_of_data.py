"""A study with a part of the data: further things to measure, drawn from within, with keys of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergecore.config_file import parse_config
from mergecore.data.images import load_images
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.measured import shares
from mergecore.preflight import check
from mergecore.study import prepare


def test_the_part_lies_in_the_whole(pico_config: dict[str, Any], home: Path) -> None:
    pico_config["tasks"][1]["dataset"] = {**pico_config["tasks"][1]["dataset"], "limit": 30, "seed": 5}
    plain = prepare(parse_config(pico_config), home)
    study = prepare(parse_config({**pico_config, "budget": {"share": 0.25}}), home)
    assert study.measured[:4] == plain.measured  # the ledger serves both
    assert (study.search_tasks, study.held_out_tasks, study.part_tasks) == ([0, 1], [2, 3], [4, 5])
    assert plain.part_tasks == []
    assert [study.measured[m].examples for m in study.part_tasks] == [10, 8]  # a quarter, rounded up
    assert shares(study.measured).tolist() == [10 / 40, 8 / 30]
    assert shares(plain.measured).tolist() == [1.0, 1.0]
    for part, whole in zip(study.part_tasks, study.search_tasks, strict=True):
        drawn = [study.measured[m] for m in (part, whole)]
        few, all_ = ({image.tobytes() for image in load_images(d.dataset, d.context).x} for d in drawn)
        assert few < all_
    measured = [*study.search_tasks, *study.part_tasks]
    assert len({study.evaluation_key([0.5, 0.5], m) for m in measured}) == 4


def test_both_are_measured_on_the_same_merge(pico_config: dict[str, Any], home: Path) -> None:
    study = prepare(parse_config({**pico_config, "budget": {"share": 0.3}}), home)
    outcomes = CandidateEvaluator(study).evaluate([0.4, 0.6], range(6))
    assert [outcome.examples for outcome in outcomes] == [40, 40, 40, 40, 12, 12]
    assert not any(outcome.reason for outcome in outcomes)


def test_check_says_what_it_costs(pico_config: dict[str, Any], home: Path) -> None:
    found = check(parse_config({**pico_config, "budget": {"share": 0.25, "grow": 0.5}}), home)
    assert found.full_pairs == 12 * 2 * 0.25 + 6 * 2 + 3 * 2  # twelve samples, half of them grown, three verified
    assert found.total_seconds == pytest.approx(sum(found.seconds.values()) / 2 * found.full_pairs / found.workers)
    assert set(found.seconds) == {"a", "b"}
    plain = check(parse_config({**pico_config, "budget": {"pairs": 13, "minutes": 5}}), home)
    assert (plain.full_pairs, plain.coefficient_vectors, plain.minutes) == (6 * 2 + 3 * 2, 6 + 3, 5)
    assert "budget.pairs allows 6 of the 12" in plain.warnings[-1]


def test_a_task_without_rows_is_refused(pico_config: dict[str, Any], home: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "own_of_part.py").write_text("def score(candidate, **where):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"name": "own", "evaluator": "python", "metric": "score", "direction": "maximize"}
    own["args"] = {"function": "own_of_part:score"}  # type: ignore[assignment]
    del pico_config["tasks"][0]["dataset"]["test_split"]
    for task in (own, {**own, "dataset": {"path": pico_config["tasks"][0]["dataset"]["path"]}}):
        tasks = [pico_config["tasks"][0], task]
        with pytest.raises(InputError, match="the data of the task 'own' is not drawn from by its evaluator 'python'"):
            check(parse_config({**pico_config, "tasks": tasks, "budget": {"share": 0.5}}), home)


def test_too_few_rows_are_refused(pico_config: dict[str, Any], home: Path) -> None:
    with pytest.raises(InputError, match=r"budget.share is 0.99, but the data of the task 'a' is too small for a part"):
        check(parse_config({**pico_config, "budget": {"share": 0.99}}), home)


def test_methods_that_cannot_are_refused(pico_config: dict[str, Any], home: Path) -> None:
    search = {"method": "direct", "samples": 12}
    with pytest.raises(InputError, match="direct needs every metric on all data"):
        check(parse_config({**pico_config, "search": search, "budget": {"share": 0.5}}), home)
