"""Nested MAP as a flow: what it evaluates, tracks and leaves; killed in the middle of a level."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from flows.cli import app
from flows.nested_map import nested_map_flow
from mergecore.config_file import parse_config
from mergecore.pick import pick_point
from mergecore.run_folder import read_run
from mergecore.run_record import RunRecord
from tests.conftest import random_state, write_checkpoint
from tests.flows.conftest import CountedStudy
from tests.flows.test_faults import check_same_front, finish, launch, ledger_size, wait_for_calls

CALLABLE = '''
"""Each task wants its own model at 0.7 and suffers from the others."""
import time

from counted_metrics import note, sigmoid


def measure(candidate, *, task, model, log, sleep):
    time.sleep(sleep)
    note(log, task, candidate)
    own, others = candidate.coefficients[model], sum(candidate.coefficients) - candidate.coefficients[model]
    return sigmoid(2 - 4 * (own - 0.7) ** 2 - 0.5 * (1 + model % 2) * others**2)
'''
NAMES = ("upright", "<b>", "c d", "x+y", "e", "$f$", "g", "h")


def study_of(folder: Path, models: int, *, sleep: float = 0.0) -> CountedStudy:
    """So many tiny models, each with a task of its name; every call is noted."""
    study = CountedStudy(folder)
    (folder / "nested_metrics.py").write_text(CALLABLE)
    arguments = {"function": "nested_metrics:measure", "log": str(study.log), "sleep": sleep}
    study.config |= {
        "models": [
            {"name": name, "source": write_checkpoint(folder / f"model{n}.safetensors", random_state(10 + n))}
            for n, name in enumerate(NAMES[:models])
        ],
        "tasks": [
            {"name": f"t{n}", "head": name, "evaluator": "python", "args": {**arguments, "task": f"t{n}", "model": n}}
            for n, name in enumerate(NAMES[:models])
        ],
        "search": {"method": "nested_map", "order": "given"},
        "front": {"population": 24, "generations": 20, "verify": 3},
    }
    return study


@pytest.fixture(scope="module")
def eight(
    tmp_path_factory: pytest.TempPathFactory, prefect_api: None, ray_cluster: None
) -> tuple[CountedStudy, RunRecord, Path]:
    """A run over eight models, and its folder."""
    place = tmp_path_factory.mktemp("eight")
    study = study_of(place / "study", 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGECORE_HOME", str(place / "home"))
        patch.setenv("PYTHONPATH", str(study.folder))
        patch.syspath_prepend(str(study.folder))
        folder = Path(nested_map_flow(parse_config(study.config), str(place / "out")))
    return study, read_run(folder), folder


@pytest.mark.timeout(300)
def test_evaluations_are_those_of_the_formula_in_ledger_and_summary(eight: Any) -> None:
    study, record, folder = eight
    spent, counts = record.summary["spent"], record.summary["evaluations"]
    assert spent["pairs"] == 20 * 8 * np.log2(8) == 480
    assert counts["pairs"] == 480 + 3 * 8 == 480 + spent["verification_pairs"]
    assert ledger_size(folder.parent / "home") == sum(study.calls.values()) == len(study.calls) == counts["pairs"]
    assert sum(merge["evaluations"] for merge in record.summary["rounds"]) == 480
    assert record.evaluations["round"].value_counts(sort=False).tolist() == [80, 40, 20, 3]


def test_every_merge_has_its_coefficients_and_the_flat_ones(eight: Any) -> None:
    _, record, _ = eight
    merges = {merge["name"]: merge for merge in record.summary["rounds"]}
    assert len(merges) == 7
    flat = {name: {name: 1.0} for name in record.models}
    for name, merge in merges.items():
        parts = zip(merge["coefficients"], merge["sides"], strict=True)
        flat[name] = {model: c * own for c, side in parts for model, own in flat[side["name"]].items()}
        assert merge["flat"] == pytest.approx(flat[name])
    *_, last = merges.values()
    assert set(last["flat"]) == set(NAMES)
    # the front is that of the last pair: flat vectors, chosen point among them or between
    assert record.front_coefficients().shape[1] == 8
    assert (np.isfinite(record.front_metrics("real")).all(axis=1)).sum() == 3


def test_pairs_are_child_runs_with_tables_and_pictures(eight: Any) -> None:
    from mlflow import MlflowClient

    _, record, _ = eight
    client, parent = MlflowClient(record.summary["tracking"]["uri"]), record.summary["tracking"]["run_id"]
    assert {"front.png", "tree.png"} <= {item.path for item in client.list_artifacts(parent)}
    experiment = client.get_run(parent).info.experiment_id
    runs = {
        run.info.run_name: run for run in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    }
    merges = record.summary["rounds"]
    assert runs.keys() == {
        *(f"level {level}" for level in (1, 2, 3)),
        *(f"pair {merge['name']}" for merge in merges),
        "verification",
    }
    found = runs["pair (upright+<b>)"]
    assert found.data.metrics["c.upright"] == merges[0]["coefficients"][0]
    assert found.data.metrics["evaluations"] == 40
    assert found.data.metrics["held_out_r2.t1"] > 0.9
    assert found.data.params == {"level": "1", "first": "upright", "second": "<b>"}
    artifacts = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert {"evaluations.json", "front.json", "front.png"} <= artifacts
    table = json.loads(Path(client.download_artifacts(found.info.run_id, "front.json")).read_text())
    assert table["columns"] == ["c.upright", "c.<b>", "metric.upright", "metric.<b>", "chosen"]
    chosen = [row for row in table["data"] if row[-1]]
    assert [row[:2] for row in chosen] == [pytest.approx(merges[0]["coefficients"])]
    history = client.get_metric_history(found.info.run_id, "metric/t1")
    assert len(history) == 20


def test_pairs_are_tasks_and_the_tree_is_an_artifact(eight: Any) -> None:
    from prefect.artifacts import Artifact
    from prefect.client.orchestration import get_client

    _, record, folder = eight
    with get_client(sync_client=True) as client:
        names = {run.name for run in client.read_task_runs(limit=200)}
    assert {f"merge {merge['name']}" for merge in record.summary["rounds"]} <= names
    assert {"evaluate level 1", "evaluate level 2", "evaluate level 3"} <= names
    assert Artifact.get(key="summary").data.count("data:image/png;base64,") == 2
    page = (folder / "report.html").read_text()
    assert '"tree":[{' in page
    assert "<b>" not in page[page.index("<body") : page.index("<script")]


def test_pick_exports_a_point_of_the_front(eight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, record, folder = eight
    monkeypatch.setenv("MERGECORE_HOME", str(folder.parent / "home"))
    out = tmp_path / "picked"
    picked = CliRunner().invoke(app, ["pick", str(folder), "--prefer", "t0=1", "--export", str(out)])
    assert picked.exit_code == 0, picked.output
    c_N = pick_point(record, prefer={"t0": 1.0}).coefficients
    base = random_state(0)["layer.weight"]
    merged = base + sum(c * (random_state(10 + n)["layer.weight"] - base) for n, c in enumerate(c_N.values()))
    found = load_file(next(out.glob("*.safetensors")))["layer.weight"]
    torch.testing.assert_close(found, merged, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_kill_9_in_the_middle_of_a_level(tmp_path: Path) -> None:
    study = study_of(tmp_path / "study", 4, sleep=0.05)
    home, first_level = tmp_path / "h1", 2 * 20 * 2
    process = launch(study, home, tmp_path / "out1")
    wait_for_calls(study, process, first_level + 12)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(1.0)  # Ray's processes follow their driver
    known, calls = ledger_size(home), sum(study.calls.values())
    assert first_level < known < first_level + 80  # of the second level's, some and not all
    assert calls == len(study.calls)
    output = finish(launch(study, home, tmp_path / "out1"))
    assert "front" in output
    # exactly what the ledger did not know was evaluated; only calls in flight when it was killed were made again
    total = sum(study.calls.values())
    assert total - calls == ledger_size(home) - known
    assert total - len(study.calls) == calls - known <= 2 * 2 * 4  # two workers with two candidates on four tasks
    finish(launch(study, tmp_path / "h2", tmp_path / "out2"))
    check_same_front(tmp_path / "out1", tmp_path / "out2")
    one, two = (json.loads((tmp_path / out / "summary.json").read_text())["rounds"] for out in ("out1", "out2"))
    assert one == two
