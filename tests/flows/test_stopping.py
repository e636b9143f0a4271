"""Runs that end by themselves: rounds that brought nothing, tasks that do not compete, what is kept and logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import FLOWS
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.run_folder import read_run
from mergecore.run_record import RunRecord
from mergecore.search.convergence import NO_TRADE_OFF, NOTHING_MORE
from tests.flows.conftest import CountedStudy

pytestmark = [pytest.mark.usefixtures("prefect_api", "ray_cluster"), pytest.mark.timeout(300)]

FRONT = {"population": 24, "generations": 20, "verify": 0}


def run(config: dict[str, Any], out: Path, **changes: Any) -> RunRecord:
    study = parse_config({**config, "front": FRONT, **changes})
    return read_run(FLOWS.get(study.search.method)(study, str(out)))


def test_plain_map_takes_its_samples_in_rounds_and_stops(counted: CountedStudy, tmp_path: Path) -> None:
    search = {"method": "map", "samples": 60}
    stopped = run(counted.config, tmp_path / "stopped", search=search, budget={"stop": {"hypervolume": 0.03}})
    taken = len(stopped.evaluations)
    assert taken < 60
    assert taken % 6 == 0
    assert sum(counted.calls.values()) == len(counted.calls) == 2 * taken
    assert stopped.summary["spent"]["ended"].startswith(NOTHING_MORE)
    assert "the search stopped with nothing more to find" in (tmp_path / "stopped" / "report.html").read_text()
    whole = run(counted.config, tmp_path / "whole", search=search)
    assert np.array_equal(whole.evaluated_coefficients()[:taken], stopped.evaluated_coefficients())
    rounds = stopped.summary["convergence"]
    assert [found["known"] for found in rounds] == list(range(6, taken + 1, 6))
    assert all(found["improvement"] is not None for found in rounds[1:])
    assert whole.summary["convergence"] == []


def test_bayesian_rounds_are_kept_and_logged_with_their_fronts(counted: CountedStudy, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    search = {"method": "bayesian_map", "samples": 12, "acquisition": "angular_bins"}
    record = run(counted.config, tmp_path / "out", search=search)
    rounds = record.summary["convergence"]
    assert [found["known"] for found in rounds] == [6, 9, 12]
    for found in rounds:
        points, metrics = np.array(found["front"]["coefficients"]), np.array(found["front"]["metrics"])
        assert points.shape == metrics.shape == (len(points), 2)
    assert [found["known"] for found in record.summary["rounds"]] == [6, 9]
    assert record.summary["rounds"][0]["surrogates"].keys() == {"a", "b"}
    assert "cells" in record.summary["rounds"][0]["acquisition"]
    tracking = record.summary["tracking"]
    client = MlflowClient(tracking["uri"])
    history = client.get_metric_history(tracking["run_id"], "round.hypervolume")
    assert [m.step for m in history] == [1, 2, 3]
    assert [m.value for m in history] == pytest.approx([found["hypervolume"] for found in rounds])
    experiment = client.get_run(tracking["run_id"]).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{tracking['run_id']}'")
    third = next(child for child in children if child.info.run_name == "round 2")
    assert third.data.metrics["hypervolume"] == pytest.approx(rounds[2]["hypervolume"])
    assert {"evaluations.json", "front.json"} <= {f.path for f in client.list_artifacts(third.info.run_id)}


@pytest.mark.slow
def test_one_task_twice_is_no_trade_off_and_ends_early(counted: CountedStudy, tmp_path: Path) -> None:
    tasks = [{**counted.config["tasks"][0], "name": name} for name in ("one", "two")]
    search = {"method": "bayesian_map", "samples": 60, "acquisition": "front"}
    record = run(counted.config, tmp_path / "out", tasks=tasks, search=search, budget={"stop": {"rounds": 2}})
    assert record.summary["spent"]["ended"].startswith(NO_TRADE_OFF)
    assert len(record.evaluations) <= 24
    assert record.summary["diagnosis"]["verdict"] != "trade-off"


def test_a_tree_of_pairs_cannot_stop_in_its_middle(counted: CountedStudy, tmp_path: Path) -> None:
    config = {**counted.config, "tasks": [{**task, "head": None} for task in counted.config["tasks"]]}
    for task, model in zip(config["tasks"], config["models"], strict=True):
        task["name"] = model["name"]
    search = {"method": "nested_map", "order": "given"}
    with pytest.raises(InputError, match=r"takes just its own samples, so budget\.stop is not for it"):
        run(config, tmp_path / "out", search=search, budget={"stop": True})
    assert not counted.calls
