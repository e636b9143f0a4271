"""The flow `compare` end to end on tiny studies: files, counts, what cannot be compared, MLflow, Prefect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from flows.compare import compare_flow
from mergecore.comparison.pick import is_comparison, pick_method_point, read_method
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.study import prepare
from mergecore.task_matrix import open_task_matrix
from tasks.export import export_point
from tests.conftest import random_state, rewrite, write_checkpoint
from tests.flows.conftest import CountedStudy

pytestmark = [pytest.mark.usefixtures("prefect_api", "ray_cluster"), pytest.mark.timeout(300)]

METHODS = ["map", "task_arithmetic", "soup", "preference_weights", "single", "ties", "iso_c", "slerp"]
FILES = {
    "accuracy.csv",
    "config.yaml",
    "front-2.png",
    "front-3.png",
    "measures.csv",
    "points.csv",
    "preferences.csv",
    "report.html",
    "summary.json",
    "tables.md",
}


@pytest.fixture
def compared(three: dict[str, Any]) -> dict[str, Any]:
    """Three models, and what is compared on them."""
    return {**three, "search": {"method": "map", "samples": 12}, "compare": {"methods": METHODS, "preferences": 4}}


def compare(config: dict[str, Any], out: Path, **changes: Any) -> Path:
    return Path(compare_flow(parse_config({**config, **changes}), str(out)))


def test_tables_of_every_method_and_number_of_models(compared: dict[str, Any], tmp_path: Path) -> None:
    folder = compare(compared, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == FILES
    sums = pd.read_csv(folder / "preferences.csv").set_index("method")
    assert list(sums.index) == METHODS
    assert sums.loc[METHODS[:-1]].notna().all().all()
    assert np.isnan(sums.loc["slerp", "3 mean"])
    assert "SLERP merges two models, not 3." in (folder / "tables.md").read_text()

    measures = pd.read_csv(folder / "measures.csv").set_index(["models", "method"])
    # (coefficients, task) pairs: 30 samples is the paper's budget for two models, 12 this study's for three
    assert measures.loc[(2, "map"), "evaluations"] == 30 * 2
    assert measures.loc[(3, "map"), "evaluations"] == 12 * 3
    assert measures.loc[(3, "ties"), "evaluations"] == 10 * 3
    assert measures.loc[(3, "soup"), "evaluations"] == 0
    assert (3, "single") not in measures.index

    points = pd.read_csv(folder / "points.csv")
    soup = points[(points["method"] == "soup") & (points["models"] == 3)]
    assert soup[["c.q", "c.r", "c.s"]].to_numpy() == pytest.approx(1 / 3)
    weights = points[(points["method"] == "preference_weights") & (points["models"] == 3)]
    preferences = weights[["preference.q", "preference.r", "preference.s"]].to_numpy()
    np.testing.assert_allclose(weights[["c.q", "c.r", "c.s"]].to_numpy(), preferences)
    found = weights[["real.q", "real.r", "real.s"]].to_numpy()
    assert sums.loc["preference_weights", "3 mean"] == pytest.approx((preferences * found).sum(axis=1)[1:].mean())


def test_the_front_of_a_search_is_measured_beside_its_choices(compared: dict[str, Any], tmp_path: Path) -> None:
    folder = compare(compared, tmp_path / "out", compare={"methods": ["map"], "counts": [3], "preferences": 2})
    points = pd.read_csv(folder / "points.csv")
    front = points[points["use"] == "front"]
    assert len(points[points["use"] == "preference"]) == 3
    assert front["predicted.q"].notna().all()
    assert front["real.q"].notna().sum() == 4  # front.verify


@pytest.mark.slow
def test_nothing_is_evaluated_twice_and_tables_are_the_same(
    compared: dict[str, Any], counted: CountedStudy, tmp_path: Path
) -> None:
    first = compare(compared, tmp_path / "one")
    calls = sum(counted.calls.values())
    second = compare(compared, tmp_path / "two")
    assert sum(counted.calls.values()) == calls
    for name in ("points.csv", "preferences.csv", "accuracy.csv", "measures.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_reference_model_is_no_merge(compared: dict[str, Any], tmp_path: Path) -> None:
    references = [{"name": "multi-task", "source": compared["models"][2]["source"], "models": [2]}]
    folder = compare(compared, tmp_path / "out", compare={"methods": ["soup"], "references": references})
    accuracy = pd.read_csv(folder / "accuracy.csv")
    assert list(accuracy[accuracy["models"] == 2]["method"]) == ["soup", "multi-task"]
    assert list(accuracy[accuracy["models"] == 3]["method"]) == ["soup"]
    assert "multi-task" not in set(pd.read_csv(folder / "measures.csv")["method"])


def test_a_reference_that_does_not_fit_is_left_out(compared: dict[str, Any], tmp_path: Path) -> None:
    state = {"embed": random_state(0)["embed"]}
    other = write_checkpoint(tmp_path / "other.safetensors", state)
    references = [{"name": "multi-task", "source": other}]
    folder = compare(compared, tmp_path / "out", compare={"methods": ["soup"], "references": references, "counts": [3]})
    assert "The model 'multi-task' has another architecture than the base" in (folder / "tables.md").read_text()


def test_nothing_to_compare_is_one_sentence(compared: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No method could be compared; the first one: SLERP merges two models"):
        compare(compared, tmp_path / "out", compare={"methods": ["slerp"], "counts": [3]})
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.slow
def test_held_out_data_is_what_tables_show(pico_config: dict[str, Any], home: Path, tmp_path: Path) -> None:
    dataset = pico_config["tasks"][0]["dataset"]
    tasks = [{"name": name, "dataset": dataset} for name in ("first", "second")]
    methods = ["map", {"method": "map", "transform": "ties", "label": "other <b>"}, "soup", "iso_c"]
    folder = compare(pico_config, tmp_path / "out", tasks=tasks, compare={"methods": methods, "preferences": 3})
    assert (folder / "tables.md").read_text().startswith("Measured on held-out data")
    points = pd.read_csv(folder / "points.csv")
    chosen, front = points[points["use"] == "preference"], points[points["use"] == "front"]
    assert chosen["real.first"].isna().all()
    assert chosen["test.first"].notna().all()
    assert front["real.first"].notna().sum() == front["test.first"].notna().sum() > 0
    # a merge is one column, a transform keeps both
    assert points[points["method"] == "iso_c"]["c.iso_c"].notna().all()
    assert "other &lt;b&gt;" in (folder / "tables.md").read_text()


@pytest.mark.slow
def test_everything_is_in_mlflow_and_prefect(compared: dict[str, Any], tmp_path: Path) -> None:
    from mlflow import MlflowClient
    from prefect.artifacts import Artifact

    folder = compare(compared, tmp_path / "out", compare={"methods": ["map", "soup", "slerp"], "preferences": 2})
    tracking = json.loads((folder / "summary.json").read_text())["tracking"]
    client = MlflowClient(tracking["uri"])
    parent = client.get_run(tracking["run_id"])
    assert parent.info.status == "FINISHED"
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"preferences.json", "accuracy.json", "measures.json", "points.json", "front-2.png", "run"} <= files
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    names = {f"{n} models: {m}" for n in (2, 3) for m in ("map", "soup")} | {"2 models: slerp"}
    assert {child.info.run_name for child in children} == names
    assert all("equal preference/q" in child.data.metrics for child in children)
    assert {(c.data.params["method"], c.data.params["models"]) for c in children} >= {("map", "2"), ("soup", "3")}
    table = Artifact.get(key="preference-sums")
    assert [row["method"] for row in json.loads(table.data)] == ["map", "soup", "slerp"]
    assert "data:image/png;base64," in Artifact.get(key="comparison").data


@pytest.mark.slow
def test_a_methods_point_becomes_a_checkpoint(pico_config: dict[str, Any], home: Path, tmp_path: Path) -> None:
    dataset = pico_config["tasks"][0]["dataset"]
    tasks = [{"name": name, "dataset": dataset} for name in ("first", "second")]
    methods = [{"method": "map", "transform": "ties"}, "iso_c", "preference_weights", "single"]
    folder = compare(pico_config, tmp_path / "out", tasks=tasks, compare={"methods": methods, "preferences": 3})
    assert is_comparison(folder)

    record = read_method(folder, "map + ties", None)
    choice = pick_method_point(record, prefer={"first": 1.0}, verified=True)
    assert choice.metrics["real"]["first"] == record.front_metrics("real")[choice.index, 0]
    export_point(record, choice, tmp_path / "ties")
    config = parse_config({**pico_config, "tasks": tasks, "merge": {"transform": "ties"}})
    study = prepare(config, home)
    matrix = open_task_matrix(study.matrix_folder)
    expected = matrix.named(matrix.merge(list(choice.coefficients.values())))
    found = load_file(tmp_path / "ties" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items() if name in found)
    assert "found by `map + ties`" in (tmp_path / "ties" / "README.md").read_text()

    iso = read_method(folder, "iso_c", 2)
    assert iso.models == ["iso_c"]
    point = pick_method_point(iso)
    export_point(iso, point, tmp_path / "iso")
    assert f"theta_pre + {point.coefficients['iso_c']:.17g} (" in (tmp_path / "iso" / "README.md").read_text()
    assert not (tmp_path / "iso" / "mergekit.yaml").exists()

    weights = pick_method_point(read_method(folder, "preference_weights", None), prefer={"first": 1, "second": 3})
    assert weights.coefficients == {"first": 0.25, "second": 0.75}
    for label, models, message in (
        (None, None, "Say whose with '--method'"),
        ("iso", None, "Did you mean 'iso_c'?"),
        ("single", None, "is no merge"),
        ("iso_c", 3, "was not compared for 3 models"),
    ):
        with pytest.raises(InputError, match=message):
            read_method(folder, label, models)
    with pytest.raises(InputError, match="Say it with --prefer"):
        pick_method_point(read_method(folder, "preference_weights", None))
    rewrite(pico_config["models"][0]["source"], lambda state: state.update({"classifier.bias": torch.ones(3)}))
    with pytest.raises(InputError, match="have changed since this run"):
        export_point(iso, point, tmp_path / "changed")
