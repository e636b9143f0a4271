"""Budgets of whole runs: cuts are exact, what is cut can be continued, minutes by a clock that counts calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import FLOWS
from mergecore.config_file import parse_config
from mergecore.errors import EvaluationError, InputError
from mergecore.run_folder import read_run
from mergecore.run_record import RunRecord
from mergecore.study import new_search
from tasks.evaluation import Evaluations
from tasks.run import Run, open_run
from tasks.search import evaluate_rounds
from tests.flows.conftest import CountedStudy

pytestmark = [pytest.mark.usefixtures("prefect_api", "ray_cluster"), pytest.mark.timeout(300)]

UNVERIFIED = {"population": 24, "generations": 20, "verify": 0}


def run(config: dict[str, Any], out: Path, **changes: Any) -> RunRecord:
    study = parse_config({**config, "front": UNVERIFIED, **changes})
    return read_run(FLOWS.get(study.search.method)(study, str(out)))


@pytest.mark.slow
def test_pairs_cut_a_round_and_runs_share_what_they_took(counted: CountedStudy, tmp_path) -> None:
    first = run(counted.config, tmp_path / "a", budget={"pairs": 17})
    assert sum(counted.calls.values()) == len(counted.calls) == 16  # eight on both tasks, and one pair left over
    spent = first.summary["spent"]
    assert {k: spent[k] for k in ("pairs", "ended", "verification_pairs")} == {
        "pairs": 16,
        "ended": "budget.pairs",
        "verification_pairs": 0,
    }
    more = run(counted.config, tmp_path / "b", budget={"pairs": 24})
    assert sum(counted.calls.values()) == 24
    everything = run(counted.config, tmp_path / "c", budget={"pairs": 40})
    assert sum(counted.calls.values()) == len(counted.calls) == 40
    assert everything.summary["spent"]["ended"] == "all samples"
    asked_KN = everything.evaluated_coefficients()
    assert np.array_equal(first.evaluated_coefficients(), asked_KN[:8])
    assert np.array_equal(more.evaluated_coefficients(), asked_KN[:12])
    run(counted.config, tmp_path / "again", budget={"pairs": 17})
    assert sum(counted.calls.values()) == 40
    assert (tmp_path / "again" / "front.csv").read_bytes() == (tmp_path / "a" / "front.csv").read_bytes()


def test_verification_is_counted_apart(counted: CountedStudy, tmp_path) -> None:
    record = run(counted.config, tmp_path / "out", budget={"pairs": 12}, front={**UNVERIFIED, "verify": 4})
    counts, spent = record.summary["evaluations"], record.summary["spent"]
    assert spent["pairs"] == 12
    assert spent["verification_pairs"] == counts["pairs"] - 12 == sum(counted.calls.values()) - 12 > 0


def test_a_search_in_rounds_is_cut_in_the_middle_of_one(counted: CountedStudy, tmp_path) -> None:
    search = {"method": "bayesian_map", "acquisition": "angular_bins", "samples": 12}
    record = run(counted.config, tmp_path / "out", search=search, budget={"pairs": 16})
    assert record.evaluations["round"].tolist() == [0] * 6 + [1] * 2
    assert sum(counted.calls.values()) == 16
    assert len(record.summary["rounds"]) == 1  # nothing was proposed that could not be evaluated
    assert record.summary["spent"]["ended"] == "budget.pairs"


def test_nested_map_is_refused_before_anything_is_evaluated(three: dict[str, Any], counted, tmp_path) -> None:
    search = {"method": "nested_map", "order": "given"}
    with pytest.raises(InputError, match="takes up to 100 "):
        run(three, tmp_path / "out", search=search, budget={"pairs": 99})
    assert not counted.calls
    record = run(three, tmp_path / "out", search=search, budget={"pairs": 100})
    assert sum(counted.calls.values()) == record.summary["spent"]["pairs"] == 100


@pytest.fixture
def timed(counted: CountedStudy, tmp_path) -> Callable[..., tuple[Run, list[Evaluations]]]:
    """The rounds of a search by a clock on which an evaluation takes a minute and all else no time."""

    def rounds_of(config: dict[str, Any], **changes: Any) -> tuple[Run, list[Evaluations]]:
        study = parse_config({**config, "front": UNVERIFIED, **changes})
        before = sum(counted.calls.values())
        with open_run(study, str(tmp_path / "timed")) as run:
            minutes: Callable[[], float] = lambda: run.started + 60.0 * (sum(counted.calls.values()) - before)  # noqa: E731
            return run, evaluate_rounds(run, new_search(study), clock=minutes)

    return rounds_of


def facts(run: Run) -> tuple[Any, ...]:
    return tuple(run.spent[name] for name in ("pairs", "minutes", "ended"))


@pytest.mark.slow
def test_minutes_end_a_round_between_slices(counted: CountedStudy, timed, monkeypatch) -> None:
    monkeypatch.setattr("tasks.evaluation.SLICE", 3)  # six candidates at a time with two workers: twelve minutes
    run_, (found,) = timed(counted.config, budget={"minutes": 13})
    assert len(found.coefficients_KN) == 12
    assert facts(run_) == (24, 24.0, "budget.minutes")
    assert np.array_equal(found.coefficients_KN, new_search(parse_config(counted.config)).ask()[:12])
    run_, (found,) = timed(counted.config, budget={"minutes": 100})  # what is known takes no time
    assert facts(run_) == (40, 16.0, "all samples")
    assert sum(counted.calls.values()) == len(counted.calls) == 40


def test_too_few_minutes_are_an_error_that_keeps_everything(counted: CountedStudy, timed, monkeypatch) -> None:
    monkeypatch.setattr("tasks.evaluation.SLICE", 1)
    with pytest.raises(EvaluationError, match=r"minutes of budget.minutes were over .* Run again to continue"):
        timed(counted.config, budget={"minutes": 1}, execution={"workers": 1})
    assert sum(counted.calls.values()) == 2  # one candidate, and a plane takes three


@pytest.mark.slow
def test_nested_map_is_stopped_in_the_middle_and_continued(three: dict[str, Any], counted, timed, monkeypatch) -> None:
    monkeypatch.setattr("tasks.evaluation.SLICE", 3)
    changes = {"search": {"method": "nested_map", "order": "given"}, "budget": {"minutes": 60}}
    with pytest.raises(EvaluationError, match="everything that was evaluated is kept"):
        timed(three, **changes)
    assert sum(counted.calls.values()) == 40 + 2 * 6 * 3
    run_, rounds = timed(three, **changes)
    assert [len(found.coefficients_KN) for found in rounds] == [20, 20]
    assert run_.spent["ended"] == "all samples"
    assert sum(counted.calls.values()) == len(counted.calls) == 100
