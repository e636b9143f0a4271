"""A study that is run again: at once where nothing changed, otherwise only what did; models found by a pattern."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.map import map_flow
from flows.nested_map import nested_map_flow
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.run_folder import read_run
from tests.conftest import random_state, rewrite, write_checkpoint
from tests.flows.conftest import CountedStudy

pytestmark = pytest.mark.usefixtures("prefect_api", "ray_cluster")


def evaluated(home: Path) -> Counter[str]:
    """Evaluations in the ledger by task."""
    with sqlite3.connect(home / "ledger.sqlite") as ledger:
        return Counter(task for (task,) in ledger.execute("SELECT task FROM evaluations"))


def runs_in_mlflow(record: Any) -> int:
    from mlflow import MlflowClient

    return len(MlflowClient(record.summary["tracking"]["uri"]).search_runs(["1"]))


def test_nothing_changed_is_said_and_nothing_is_done(counted: CountedStudy, tmp_path: Path, capsys: Any) -> None:
    config, out = parse_config(counted.config), str(tmp_path / "out")
    record = read_run(map_flow(config, out))
    stamps = {file.name: file.stat().st_mtime_ns for file in Path(out).iterdir()}
    logged, calls = runs_in_mlflow(record), counted.calls
    capsys.readouterr()
    more = {"workers": 1, "attempts": 5, "minutes_per_evaluation": 30}  # of what leaves no trace in a front
    config = parse_config({**counted.config, "execution": {**counted.config["execution"], **more}})
    state = map_flow(config, out, return_state=True)
    assert (state.name, state.is_completed(), state.result()) == ("Unchanged", True, out)
    assert state.message == f"Nothing changed since {record.summary['finished']}: the front in {out!r} stands."
    assert state.message in capsys.readouterr().err
    assert map_flow(config, out) == out
    assert (runs_in_mlflow(record), counted.calls) == (logged, calls)
    assert stamps == {file.name: file.stat().st_mtime_ns for file in Path(out).iterdir()}

    (tmp_path / "out" / "front.csv").unlink()
    assert map_flow(config, out, return_state=True).name == "Completed"
    assert read_run(out).summary["evaluations"]["new_pairs"] == 0
    other = config.model_copy(update={"front": config.front.model_copy(update={"verify": 2})})
    assert map_flow(other, out, return_state=True).name == "Completed"
    assert map_flow(other, out, return_state=True).name == "Unchanged"


@pytest.mark.slow
def test_changed_data_are_measured_again_and_no_other(pico_config: dict[str, Any], home: Path, tmp_path: Path) -> None:
    data = Path(pico_config["tasks"][0]["dataset"]["path"])
    own = shutil.copyfile(data, tmp_path / "own.npz")
    first, second = (dict(task) for task in pico_config["tasks"])
    second["dataset"] = {**second["dataset"], "path": str(own)}
    config = parse_config({**pico_config, "tasks": [first, second], "front": {**pico_config["front"], "verify": 0}})
    map_flow(config, str(tmp_path / "out"))
    before = evaluated(home)
    arrays = dict(np.load(own))
    arrays["y_validation"] = np.roll(arrays["y_validation"], 1)
    np.savez(own, **arrays)
    map_flow(config, str(tmp_path / "out"))
    metrics_of_b = before["b"] // 12  # one pass gives several metrics
    assert evaluated(home) == before + Counter(b=12 * metrics_of_b)
    assert read_run(tmp_path / "out").summary["evaluations"]["known_pairs"] == 12


@pytest.mark.slow
def test_a_changed_model_leaves_the_pairs_of_others_known(three: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config({**three, "search": {"method": "nested_map", "samples": 20, "order": "given"}})
    nested_map_flow(config, str(tmp_path / "out"))
    counts = read_run(tmp_path / "out").summary["evaluations"]
    write_checkpoint(tmp_path / "study" / "s.safetensors", random_state(7))
    nested_map_flow(config, str(tmp_path / "out"))
    again = read_run(tmp_path / "out").summary["evaluations"]
    assert again["pairs"] == counts["pairs"]
    assert again["known_pairs"] >= 20 * 2  # those of the first two models
    assert again["new_pairs"] > 0


@pytest.mark.slow
def test_models_and_their_tasks_are_those_that_match(pico_config: dict[str, Any], home: Path, tmp_path: Path) -> None:
    teams = tmp_path / "teams"
    for name, source in zip(("cats", "dogs"), pico_config["models"], strict=True):
        shutil.copytree(source["source"], teams / name / "model")
        shutil.copyfile(pico_config["tasks"][0]["dataset"]["path"], teams / name / "data.npz")
    (teams / ".hidden" / "model").mkdir(parents=True)
    task = {"name": "*", "dataset": {"path": f"{teams}/*/data.npz", "split": "validation"}}
    models = [{"name": "team *", "source": f"{teams}/*/model"}]
    config = parse_config({**pico_config, "models": models, "tasks": [task]})
    record = read_run(map_flow(config, str(tmp_path / "out")))
    assert record.models == ["team cats", "team dogs"]
    assert [task.name for task in record.tasks] == ["cats", "dogs"]
    assert record.config["models"][1] == {"name": "team dogs", "source": str(teams / "dogs" / "model")}
    assert map_flow(config, str(tmp_path / "out"), return_state=True).name == "Unchanged"

    rewrite(teams / "dogs" / "model", lambda state: [tensor.mul_(1.01) for tensor in state.values()])
    assert map_flow(config, str(tmp_path / "out"), return_state=True).name == "Completed"
    shutil.rmtree(teams / "dogs")
    with pytest.raises(InputError, match="at least two fine-tuned models, the config names 1"):
        map_flow(config, str(tmp_path / "out"))
    shutil.rmtree(teams)
    with pytest.raises(InputError, match="Nothing matches the source"):
        map_flow(config, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [{"name": "a", "source": "x/*"}]}, "stands in the name too"),
        ({"models": [{"name": "*", "source": "x/*/*"}]}, "more than one"),
        ({"base": "x/*"}, "there is one base"),
        ({"tasks": [{"name": "*"}]}, "no model has a"),
    ],
)
def test_stars_that_stand_for_nothing(pico_config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config({**pico_config, **changes})


@pytest.mark.slow
def test_a_run_that_ran_out_of_time_goes_on(counted: CountedStudy, tmp_path: Path) -> None:
    config, out = parse_config(counted.config), tmp_path / "out"
    map_flow(config, str(out))
    summary = json.loads((out / "summary.json").read_text())
    (out / "summary.json").write_text(json.dumps(summary | {"spent": {**summary["spent"], "ended": "budget.minutes"}}))
    assert map_flow(config, str(out), return_state=True).name == "Completed"
