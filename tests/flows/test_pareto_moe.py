"""PWE-MoE as a flow: trained once by any number of workers, killed and continued, its rays measured and exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from flows.pareto_moe import pareto_moe_flow
from mergecore.config_file import parse_config
from mergecore.errors import InputError, NumericalError
from mergecore.evaluation import CandidateEvaluator
from mergecore.pick import Pick, pick_point
from mergecore.run_folder import RUN_FILES, read_run
from mergecore.run_record import RunRecord
from mergecore.study import prepare
from tasks.export import export_point
from tests.conftest import make_pico_config, make_pico_vit

in_process = pytest.mark.usefixtures("prefect_api", "ray_cluster")
STEPS = 12


def routed(config: dict[str, Any], **search: Any) -> dict[str, Any]:
    """The pico study, to be searched by PWE-MoE."""
    tasks = [{**task, "metric": "accuracy"} for task in config["tasks"]]
    own = {"method": "pwe_moe", "modules": "attn+mlp", "steps": STEPS, "batch_size": 4, "samples": 5, "save_every": 4}
    return {**config, "tasks": tasks, "search": own | search, "front": {"verify": 2}}


def run(config: dict[str, Any], out: Path) -> Path:
    return Path(pareto_moe_flow(parse_config(config), str(out)))


def only(folder: Path) -> Path:
    """The one file of trained routers."""
    (file,) = (folder / "routers").glob("*.safetensors")
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one run of this module lies: ``home`` and ``out``."""
    return tmp_path_factory.mktemp("routers")


@pytest.fixture(scope="module")
def trained(place: Path, prefect_api: None, ray_cluster: None) -> tuple[dict[str, Any], RunRecord]:
    """A run, and its config."""
    config = routed(make_pico_config(make_pico_vit(place)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGECORE_HOME", str(place / "home"))
        return config, read_run(run(config, place / "out"))


@pytest.fixture
def record(trained: tuple[dict[str, Any], RunRecord], place: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """That run, whose home is the one in use."""
    monkeypatch.setenv("MERGECORE_HOME", str(place / "home"))
    return trained[1]


@in_process
@pytest.mark.timeout(300)
def test_a_run_leaves_its_files_and_the_rays_in_them(record: RunRecord, place: Path) -> None:
    assert sorted(path.name for path in (place / "out").iterdir()) == sorted(RUN_FILES)
    assert record.models == ["a", "b"]
    np.testing.assert_array_equal(
        record.evaluated_coefficients(), [[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]
    )
    assert np.isfinite(record.front_metrics("real")).all()
    assert np.isfinite(record.front_metrics("test")).all(axis=1).sum() == min(2, len(record.front))
    found = record.summary["pareto_moe"]
    assert len(found["modules"]) == 2
    assert found["training"]["parameters"] == 2 * 22
    assert found["training"]["steps"] == STEPS
    assert found["training"]["peak_bytes"] > 0
    assert np.array(found["routing"]["equal"]).shape == (2, 2)
    assert [row["preference"] for row in found["table"]] == ["equal", "a", "b"]
    assert len(found["training"]["losses"]["a"]) == STEPS
    assert not list((place / "home" / "routers").glob("*.part"))


@in_process
@pytest.mark.timeout(300)
def test_what_was_trained_and_measured_is_found(record: RunRecord, trained: Any, place: Path, tmp_path: Path) -> None:
    before = only(place / "home").stat().st_mtime_ns
    again = read_run(run(trained[0], tmp_path / "again"))
    assert only(place / "home").stat().st_mtime_ns == before
    assert again.summary["evaluations"]["new_pairs"] == 0
    assert (tmp_path / "again" / "front.csv").read_bytes() == (place / "out" / "front.csv").read_bytes()
    assert again.summary["pareto_moe"]["training"]["seconds"] == 0


@in_process
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("scalarisation", ["epo", "ls"])
def test_two_workers_train_as_one(pico_config: Any, tmp_path: Path, monkeypatch: Any, scalarisation: str) -> None:
    """To the bit, which is more than the 1e-6 that sums in another order would allow."""
    files = []
    for workers in (1, 2):
        monkeypatch.setenv("MERGECORE_HOME", str(tmp_path / f"home{workers}"))
        config = routed(pico_config, scalarisation=scalarisation, preferences_per_step=2, micro_batch=2)
        run({**config, "execution": {"workers": workers}}, tmp_path / f"out{workers}")
        files.append(only(tmp_path / f"home{workers}"))
    assert files[0].name == files[1].name
    assert files[0].read_bytes() == files[1].read_bytes()


@in_process
@pytest.mark.timeout(300)
def test_training_is_in_mlflow(record: RunRecord) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(record.summary["tracking"]["uri"])
    parent = client.get_run(record.summary["tracking"]["run_id"])
    found = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    children = {child.info.run_name: child for child in found}
    assert {"training", "round 0"} <= children.keys()
    history = client.get_metric_history(children["training"].info.run_id, "metric/loss.a")
    assert len(history) == STEPS
    assert children["training"].data.metrics["parameters"] == 44
    files = {item.path for item in client.list_artifacts(children["training"].info.run_id)}
    assert {"training.json", "routing.json"} <= files
    assert {"front.png", "routing.png", "training.png"} <= {
        item.path for item in client.list_artifacts(parent.info.run_id)
    }


@in_process
@pytest.mark.timeout(300)
def test_an_exported_preference_is_the_unloaded_network(
    record: RunRecord, trained: Any, place: Path, tmp_path: Path
) -> None:
    from transformers import ViTForImageClassification

    preference = np.array([0.3, 0.7])
    choice = Pick(-1, {"a": 0.3, "b": 0.7}, {}, "real")
    export_point(record, choice, tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "| a | 0.29999999999999999 |" in card
    assert "pwe_moe" in card
    assert not (tmp_path / "merged" / "mergekit.yaml").exists()
    study = prepare(parse_config(trained[0]), place / "home").routed(only(place / "home"))
    candidates = CandidateEvaluator(study)
    candidates.merge(preference)
    candidate, evaluator = candidates.candidate(preference, None), candidates.evaluator(0)
    expected = evaluator.logits(candidate, np.arange(20))
    network = ViTForImageClassification.from_pretrained(tmp_path / "merged", local_files_only=True)
    images: Any = evaluator
    with torch.inference_mode():
        found = network(pixel_values=torch.from_numpy(np.array(images._images.x[:20]))).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@in_process
@pytest.mark.timeout(300)
def test_a_preference_is_unloaded_exactly_or_chosen_among_the_rays(record: RunRecord) -> None:
    exact = pick_point(record, prefer={"a": 3, "b": 7})
    assert exact.coefficients == pytest.approx({"a": 0.3, "b": 0.7})
    assert exact.index == -1
    measured = pick_point(record, prefer={"a": 3, "b": 7}, verified=True)
    assert measured.index >= 0


@in_process
@pytest.mark.timeout(300)
def test_a_diverging_training_is_one_sentence_and_leaves_nothing(pico_config: Any, home: Path, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="The training of the routers diverged"):
        run(routed(pico_config, learning_rate=1e30), tmp_path / "out")
    assert not list((home / "routers").glob("*.safetensors"))
    assert not (tmp_path / "out").exists()


@in_process
@pytest.mark.parametrize(
    ("search", "tasks", "message"),
    [
        ({"modules": ["nothing.*"]}, {}, "nothing"),
        ({"modules": "mpl"}, {}, "Did you mean 'mlp'"),
        ({}, {"name": "equal"}, "cannot be called so"),
        ({}, {"evaluator": "python", "args": {"function": "logging:info"}, "direction": "maximize"}, "has none"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_done(
    pico_config: Any, home: Path, search: Any, tasks: Any, message: str
) -> None:
    from mergecore.preflight import check

    config = routed(pico_config, **search)
    config["tasks"][0] |= tasks
    with pytest.raises(InputError, match=message):
        check(parse_config(config), home)
    assert not (home / "routers").exists()
    assert not (home / "task_matrices").exists()


def launch(config: dict[str, Any], folder: Path, home: Path) -> subprocess.Popen[bytes]:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(config))
    root = Path(__file__).parents[2]
    environment = {**os.environ, "MERGECORE_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "flows.cli", "run", str(file), "--out", str(home / "out")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_kill_9_in_the_middle_of_a_training(pico_config: Any, tmp_path: Path) -> None:
    """The last checkpoint is where it goes on, and the routers are those of a training that was left alone."""
    config = routed(pico_config, steps=1500, save_every=20)
    for home, kills in ((tmp_path / "disturbed", 2), (tmp_path / "calm", 0)):
        home.mkdir()
        seen = 0.0
        for _ in range(kills):
            process = launch(config, tmp_path, home)
            deadline = time.monotonic() + 200
            while time.monotonic() < deadline and process.poll() is None:
                found = [part.stat().st_mtime for part in (home / "routers").glob("*.part")]
                if found and found[0] > seen:
                    seen = found[0]
                    break
                time.sleep(0.02)
            assert process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert not list((home / "routers").glob("*.safetensors"))
            time.sleep(1.0)  # Ray's processes follow their driver
        assert launch(config, tmp_path, home).wait(250) == 0
    assert only(tmp_path / "disturbed").read_bytes() == only(tmp_path / "calm").read_bytes()
    fronts = [(tmp_path / name / "out" / "front.csv").read_bytes() for name in ("disturbed", "calm")]
    assert fronts[0] == fronts[1]
    assert (
        json.loads((tmp_path / "calm" / "out" / "summary.json").read_text())["pareto_moe"]["training"]["steps"] == 1500
    )
