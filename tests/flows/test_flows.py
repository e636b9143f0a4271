"""The flows end to end on tiny studies, in this process: files, resume, determinism, tracking, artifacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows import FLOWS
from flows.terminal import print_front
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.run_folder import RUN_FILES, read_run
from tests.flows.conftest import CountedStudy

pytestmark = [pytest.mark.usefixtures("prefect_api", "ray_cluster"), pytest.mark.timeout(300)]


def run(config: dict[str, Any], out: Path, **changes: Any) -> Path:
    study = parse_config({**config, **changes})
    return Path(FLOWS.get(study.search.method)(study, str(out)))


def test_a_run_leaves_exactly_its_files_and_they_agree(pico_config, home, tmp_path) -> None:
    folder = run(pico_config, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == sorted(RUN_FILES)
    record = read_run(folder)
    assert record.models == ["first", "second"]
    assert len(record.evaluations) == 12 + 3
    assert (record.evaluations["status"] == "ok").all()
    assert record.summary["evaluations"]["coefficient_vectors"] == 15
    real, test = record.front_metrics("real"), record.front_metrics("test")
    assert np.isfinite(real).all(axis=1).sum() == 3
    assert (np.isfinite(real) == np.isfinite(test)).all()
    # verified points of the front are among the evaluations, to the bit
    verified = record.front_coefficients()[np.isfinite(real).all(axis=1)]
    assert {tuple(c) for c in verified} <= {tuple(c) for c in record.evaluated_coefficients()}
    assert record.surrogates.keys() == {"a", "b"}
    assert record.surrogates["b"]["link"] == "softplus"
    assert record.config["resolved"]["versions"]["torch"]


def test_second_run_evaluates_nothing_and_gives_the_same(counted: CountedStudy, tmp_path) -> None:
    first = run(counted.config, tmp_path / "one")
    calls = counted.calls
    assert len(calls) == 2 * len(np.unique(read_run(first).evaluated_coefficients(), axis=0)) >= 2 * 20
    assert set(calls.values()) == {1}
    second = run(counted.config, tmp_path / "two")
    assert counted.calls == calls
    assert (first / "front.csv").read_bytes() == (second / "front.csv").read_bytes()
    assert json.loads((second / "summary.json").read_text())["evaluations"]["new_pairs"] == 0


@pytest.mark.slow
def test_one_worker_or_two_same_bits(pico_config, home, tmp_path, monkeypatch) -> None:
    fronts = []
    for workers in (1, 2):
        monkeypatch.setenv("MERGECORE_HOME", str(tmp_path / f"home{workers}"))
        folder = run(pico_config, tmp_path / f"out{workers}", execution={"workers": workers})
        fronts.append((folder / "front.csv").read_bytes())
    assert fronts[0] == fronts[1]


def test_direct_search_keeps_only_real_points(pico_config, home, tmp_path) -> None:
    record = read_run(run(pico_config, tmp_path / "out", search={"method": "direct", "samples": 14}))
    assert np.isnan(record.front_metrics("predicted")).all()
    assert np.isfinite(record.front_metrics("real")).all()
    assert record.surrogates == {}
    assert len(record.evaluations) == 14


@pytest.mark.slow
def test_data_is_decoded_by_the_first_run_alone(pico_config, home, tmp_path) -> None:
    for seed, expected in ((0, 80), (1, 0)):  # 40 examples to choose on, 40 held out
        search = {"method": "direct", "samples": 4, "seed": seed}
        record = read_run(run(pico_config, tmp_path / f"out{seed}", search=search))
        assert record.summary["decoded_examples"] == expected
        assert record.summary["evaluations"]["new_pairs"]


def test_nan_for_some_candidates_does_not_end_the_run(counted: CountedStudy, tmp_path, capsys) -> None:
    for task in counted.config["tasks"]:
        task["args"]["nan_above"] = 0.8
    record = read_run(run(counted.config, tmp_path / "out"))
    failed = record.evaluations[record.evaluations["status"] != "ok"]
    assert 0 < len(failed) < len(record.evaluations)
    assert failed["status"].str.contains("accuracy is nan").all()
    counts = record.summary["evaluations"]
    assert counts["failed"] == 2 * len(failed)
    print_front(record)
    told = f"of {counts['pairs']} (coefficient vector, task) evaluations {counts['failed']} failed (reasons in"
    assert told in " ".join(capsys.readouterr().out.split())
    assert np.isfinite(record.front_metrics("predicted")).all()
    assert "left out" in record.surrogates["a"]["warnings"][0]


def test_every_candidate_failing_is_one_sentence(counted: CountedStudy, tmp_path) -> None:
    counted.config["tasks"][1]["args"]["nan_above"] = -9.0
    with pytest.raises(InputError, match="No evaluation of the task 'b' succeeded; the first one: accuracy is nan"):
        run(counted.config, tmp_path / "out")


def test_a_folder_that_cannot_be_is_told_before_any_evaluation(counted: CountedStudy, tmp_path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="file' is a file, not a folder"):
        run(counted.config, tmp_path / "file")
    assert not counted.calls


def test_a_tracker_that_cannot_be_is_told_before_any_evaluation(counted: CountedStudy, tmp_path) -> None:
    counted.config["tracking"] = {"uri": "ftp://somewhere"}
    with pytest.raises(InputError, match=r"MLflow cannot be used at 'ftp://somewhere': .*MLFLOW_TRACKING_URI names it"):
        run(counted.config, tmp_path / "out")
    assert not counted.calls


def test_a_worker_that_is_killed_is_replaced(counted: CountedStudy, tmp_path) -> None:
    for task in counted.config["tasks"]:
        task["args"]["die_once"] = str(tmp_path / "died")
    record = read_run(run(counted.config, tmp_path / "out"))
    assert (tmp_path / "died").exists()
    assert record.summary["worker_deaths"] == 1
    assert (record.evaluations["status"] == "ok").all()


@pytest.mark.slow
def test_a_candidate_that_kills_every_worker_is_given_up(counted: CountedStudy, tmp_path) -> None:
    for task in counted.config["tasks"]:
        task["args"]["die_above"] = 0.9
    record = read_run(run(counted.config, tmp_path / "out"))
    failed = record.evaluations[record.evaluations["c.q"] > 0.9]
    assert len(failed)
    assert failed["status"].str.contains("given up at attempt 2: the worker died: ").all()
    assert (record.evaluations[record.evaluations["c.q"] <= 0.9]["status"] == "ok").all()
    again = read_run(run(counted.config, tmp_path / "again"))
    assert again.summary["worker_deaths"] == 0  # failures are facts too
    pd.testing.assert_frame_equal(again.front, record.front)


def test_everything_is_in_mlflow(pico_config, home, tmp_path) -> None:
    from mlflow import MlflowClient

    record = read_run(run(pico_config, tmp_path / "out"))
    client = MlflowClient(record.summary["tracking"]["uri"])
    parent = client.get_run(record.summary["tracking"]["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["model.first"] == pico_config["models"][0]["source"]
    assert parent.data.metrics["hypervolume.real"] == record.summary["hypervolume"]["real"]
    assert parent.data.metrics["evaluations.coefficient_vectors"] == 15
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"front.json", "front.png", "run"} <= files
    assert {item.path for item in client.list_artifacts(parent.info.run_id, "run")} == {f"run/{n}" for n in RUN_FILES}
    assert len(parent.inputs.dataset_inputs) == 4
    experiment = parent.info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} == {"round 0", "verification"}
    rounds = {child.info.run_name: child for child in children}
    history = client.get_metric_history(rounds["round 0"].info.run_id, "metric/a")
    assert [point.value for point in sorted(history, key=lambda p: p.step)] == record.evaluations["a"][:12].tolist()


def test_artifacts_are_in_prefect(pico_config, home, tmp_path) -> None:
    from prefect.artifacts import Artifact

    folder = run(pico_config, tmp_path / "out", name="shown <b>")
    table = Artifact.get(key="front")
    assert "shown" in table.description
    assert len(json.loads(table.data)) == len(read_run(folder).front)
    summary = Artifact.get(key="summary")
    assert "data:image/png;base64," in summary.data
    assert "<b>" not in summary.data


def test_interrupted_mlflow_run_is_continued(counted: CountedStudy, tmp_path, monkeypatch) -> None:
    from mlflow import MlflowClient

    from tasks import report

    def interrupt(*args: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("tasks.tracking.Tracker.__exit__", lambda *args: None)  # a kill says no goodbye
        patch.setattr(report, "build_record", interrupt)
        with pytest.raises(SystemExit):
            run(counted.config, tmp_path / "out")
    record = read_run(run(counted.config, tmp_path / "out"))
    client = MlflowClient(record.summary["tracking"]["uri"])
    experiment = client.get_experiment_by_name("map").experiment_id
    parents = [r for r in client.search_runs([experiment]) if "mlflow.parentRunId" not in r.data.tags]
    assert [r.info.status for r in parents] == ["FINISHED"]


def test_names_are_data_everywhere(counted: CountedStudy, tmp_path) -> None:
    names = ["<script>alert(1)<", "a=b, \"c\" 'd' 🦀 $x$"]
    config = counted.config | {"name": "x" * 200 + " <img src=x onerror=alert(1)>"}
    config["models"] = [model | {"name": name} for model, name in zip(config["models"], names, strict=True)]
    config["tasks"] = [task | {"name": f"task {name}"} for task, name in zip(config["tasks"], names, strict=True)]
    folder = run(config, tmp_path / "out")
    record = read_run(folder)
    assert record.models == names
    assert "<script>alert(1)" not in (folder / "report.html").read_text()
    assert list(record.front.columns[:2]) == [f"c.{name}" for name in names]


@pytest.mark.slow
def test_nested_map_evaluates_only_what_its_pairs_need(three: dict[str, Any], counted: CountedStudy, tmp_path) -> None:
    changes = {"search": {"method": "nested_map", "order": "given"}, "front": {**three["front"], "verify": 0}}
    folder = run(three, tmp_path / "out", **changes)
    record = read_run(folder)
    # two models on their own tasks, then that merge and the third on all three
    assert record.summary["evaluations"]["pairs"] == 20 * 2 + 20 * 3
    assert sum(counted.calls.values()) == len(counted.calls) == 20 * 2 + 20 * 3
    assert [merge["name"] for merge in record.summary["rounds"]] == ["(q+r)", "(s+(q+r))"]
    assert len(record.front) > 1
    calls = counted.calls
    assert (run(three, tmp_path / "again", **changes) / "front.csv").read_bytes() == (folder / "front.csv").read_bytes()
    assert counted.calls == calls


def test_bayesian_map_in_rounds(counted: CountedStudy, tmp_path) -> None:
    search = {"method": "bayesian_map", "acquisition": "angular_bins", "samples": 12}
    record = read_run(run(counted.config, tmp_path / "out", search=search))
    assert record.evaluations["round"].value_counts().to_dict() == {0: 6, 1: 3, 2: 3, 3: 4}  # the last is verification
    assert [found["known"] for found in record.summary["rounds"]] == [6, 9]
    assert record.surrogates.keys() == {"a", "b"}
