"""Rounds that begin while the one before them is still evaluated: same result whatever takes how long, exact counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import FLOWS
from mergecore.acquisitions.angular_bins import AngularBins
from mergecore.acquisitions.base import Known
from mergecore.config_file import parse_config
from mergecore.errors import NumericalError
from mergecore.run_folder import read_run
from mergecore.run_record import RunRecord
from mergecore.search.bayesian_map import BayesianMapSearch
from mergecore.search.convergence import NO_TRADE_OFF
from mergecore.study import new_search
from tasks.run import open_run
from tasks.search import evaluate_rounds
from tasks.work import Job, Ongoing
from tests.flows.conftest import CountedStudy

pytestmark = [pytest.mark.usefixtures("prefect_api", "ray_cluster"), pytest.mark.timeout(300)]

SEARCH = {"method": "bayesian_map", "acquisition": "angular_bins", "samples": 15, "batch": 2, "overlap": True}
UNVERIFIED = {"population": 24, "generations": 20, "verify": 0}


def run(config: dict[str, Any], out: Path, **changes: Any) -> RunRecord:
    study = parse_config({**config, "search": SEARCH, "front": UNVERIFIED, **changes})
    return read_run(FLOWS.get(study.search.method)(study, str(out)))


@pytest.fixture
def uneven(counted: CountedStudy) -> CountedStudy:
    """Evaluations that take up to 0.8 s on each task."""
    return CountedStudy(counted.folder, uneven=0.8)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What was done ahead of its round."""
    found: list[Job] = []
    done = Ongoing.done

    def noted(ongoing: Ongoing, job: Job, result: Any, worker: str) -> None:
        if job in ongoing.ahead:
            found.append(job)
        done(ongoing, job, result, worker)

    monkeypatch.setattr(Ongoing, "done", noted)
    return found


def asked_in_turn(config: dict[str, Any], record: RunRecord) -> np.ndarray:
    """What a search asks for that is told a round when it has asked for the next one, on the metrics of a record."""
    metrics = dict(zip(map(tuple, record.evaluated_coefficients()), record.evaluated_metrics(), strict=True))
    search = new_search(parse_config({**config, "search": SEARCH, "front": UNVERIFIED}))
    asked = search.ask()
    while len(asked):
        following = search.ask_ahead(asked)
        search.tell(asked, np.array([metrics[tuple(c)] for c in asked]))
        asked = following if len(following) else search.ask()
    return search.coefficients_KN


@pytest.mark.parametrize("workers", [1, 2])
def test_a_round_knows_all_but_the_one_before_it(
    uneven: CountedStudy, early: list[Job], tmp_path: Path, workers: int
) -> None:
    counted = uneven if workers == 2 else CountedStudy(uneven.folder)
    record = run(counted.config, tmp_path / "out", execution={"workers": workers})
    assert np.array_equal(record.evaluated_coefficients(), asked_in_turn(counted.config, record))
    assert bool(early) is (workers == 2)  # one worker does things in turn
    assert [found["known"] for found in record.summary["rounds"]] == [6, 6, 8, 10, 12]
    assert record.evaluations["round"].tolist() == [0] * 6 + [1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert sum(counted.calls.values()) == len(counted.calls) == 30
    counts = record.summary["evaluations"]
    assert (counts["pairs"], counts["new_pairs"], counts["known_pairs"]) == (30, 30, 0)
    assert record.summary["spent"]["ended"] == "all samples"


def test_pairs_bound_what_is_begun(counted: CountedStudy, tmp_path: Path) -> None:
    record = run(counted.config, tmp_path / "out", budget={"pairs": 19})
    assert record.evaluations["round"].tolist() == [0] * 6 + [1, 1, 2]
    assert sum(counted.calls.values()) == record.summary["spent"]["pairs"] == 18
    assert len(record.summary["rounds"]) == 2  # nothing was proposed that could not be evaluated
    assert record.summary["spent"]["ended"] == "budget.pairs"


def test_a_round_that_was_begun_counts_where_the_one_before_was_enough(counted: CountedStudy, tmp_path: Path) -> None:
    tasks = [{**counted.config["tasks"][0], "name": name} for name in ("one", "two")]
    search = {**SEARCH, "samples": 60}
    record = run(counted.config, tmp_path / "out", tasks=tasks, search=search, budget={"stop": True})
    assert record.summary["spent"]["ended"].startswith(NO_TRADE_OFF)
    assert len(record.evaluations) == sum(counted.calls.values()) < 60  # both tasks are one pass
    assert len(record.summary["convergence"]) == record.evaluations["round"].max() + 1


def test_what_was_begun_is_kept_where_minutes_are_over(uneven: CountedStudy, early: list[Job], tmp_path: Path) -> None:
    study = parse_config({**uneven.config, "search": SEARCH, "front": UNVERIFIED, "budget": {"minutes": 20}})
    with open_run(study, str(tmp_path / "timed")) as started:
        # an evaluation takes a minute and all else no time
        evaluate_rounds(started, new_search(study), clock=lambda: started.started + 60.0 * sum(uneven.calls.values()))
        assert started.spent["ended"] == "budget.minutes"
        taken = started.spent["pairs"]
    assert early
    assert 20 <= taken < 30
    assert taken == sum(uneven.calls.values())  # whoever was at something was waited for
    record = run(uneven.config, tmp_path / "out")
    assert np.array_equal(record.evaluated_coefficients(), asked_in_turn(uneven.config, record))
    assert sum(uneven.calls.values()) == len(uneven.calls) == 30


def test_what_fails_ahead_is_not_tried_again_in_the_same_run(
    counted: CountedStudy, early: list[Job], tmp_path: Path
) -> None:
    config = CountedStudy(counted.folder, uneven=0.8, nan_above=0.6).config
    failing = {**config["execution"], "retry_failed": True}
    first = run(config, tmp_path / "first", execution=failing)
    failed = sum(float(c) > 0.6 for c in first.evaluated_coefficients()[:, 0])
    assert 0 < failed < 15
    assert any(job.coefficients[0] > 0.6 for job in early)
    assert sum(counted.calls.values()) == len(counted.calls) == 30
    again = run(config, tmp_path / "again", execution=failing)
    assert sum(counted.calls.values()) == 30 + 2 * failed
    assert again.summary["evaluations"]["new_pairs"] == 2 * failed


def test_a_candidate_that_is_asked_for_twice_is_evaluated_once(
    uneven: CountedStudy, early: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_ahead = BayesianMapSearch.ask_ahead

    def again(search: BayesianMapSearch, pending_QN: np.ndarray) -> np.ndarray:
        found = ask_ahead(search, pending_QN)
        return np.concatenate([pending_QN[:1], found[1:]]) if len(found) > 1 else found

    monkeypatch.setattr(BayesianMapSearch, "ask_ahead", again)
    record = run(uneven.config, tmp_path / "out")
    assert len(record.evaluations) == 15
    assert early
    assert sum(uneven.calls.values()) == len(uneven.calls) == record.summary["evaluations"]["new_pairs"] < 30


def test_an_error_while_choosing_loses_nothing(
    uneven: CountedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(search: BayesianMapSearch, pending_QN: np.ndarray) -> np.ndarray:
        if len(search.coefficients_KN) < search.initial:
            return np.empty((0, 2))
        raise NumericalError("There is nothing to choose.")

    with monkeypatch.context() as patched:
        patched.setattr(BayesianMapSearch, "ask_ahead", broken)
        with pytest.raises(NumericalError, match="nothing to choose"):
            run(uneven.config, tmp_path / "out")
    assert sum(uneven.calls.values()) == 2 * (6 + 2)
    record = run(uneven.config, tmp_path / "out")
    assert record.summary["evaluations"]["known_pairs"] >= 16


@pytest.mark.parametrize("overlap", [False, True])
def test_a_round_in_which_a_task_always_fails_does_not_end_the_search(
    counted: CountedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    proposed = AngularBins.propose

    def outside(bins: AngularBins, known: Known, count: int, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        found, facts = proposed(bins, known, count, seed=seed)
        return np.column_stack([0.95 + found[:, 0] / 100, found[:, 1]]), facts

    monkeypatch.setattr(AngularBins, "propose", outside)
    config = CountedStudy(counted.folder, nan_above=0.94).config
    record = run(config, tmp_path / "out", search={**SEARCH, "samples": 10, "overlap": overlap})
    assert record.evaluations["status"].tolist()[6:] == ["failed: a: accuracy is nan; b: accuracy is nan"] * 4
    assert record.summary["evaluations"]["failed"] >= 8
