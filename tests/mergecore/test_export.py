"""An exported checkpoint is what the libraries load, equals the merge in memory, and appears whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mergecore.checkpoints.checkpoint import open_checkpoint
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.export import export_model
from mergecore.study import Study, prepare

C = np.array([0.35, 0.8])


@pytest.fixture
def study(pico_config, home) -> Study:
    return prepare(parse_config(pico_config), home)


def test_reloads_with_the_library_and_measures_the_same(study: Study, tmp_path: Path, pico_vit) -> None:
    from transformers import ViTForImageClassification

    export_model(study, C, tmp_path / "out", measured={"predicted": {"a": 0.5, "b": 1.0}})
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
    with np.load(pico_vit["data"]) as data:
        images, labels = torch.from_numpy(data["x_validation"]), data["y_validation"]
    with torch.no_grad():
        accuracy = float((loaded(images).logits.argmax(1).numpy() == labels).mean())
    assert accuracy == CandidateEvaluator(study).evaluate(C, [0])[0].metrics["accuracy"]


def test_shards_hold_the_same_tensors(study: Study, tmp_path: Path, home: Path) -> None:
    export_model(study, C, tmp_path / "one", measured={})
    export_model(study, C, tmp_path / "many", measured={}, shard_bytes=1000)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        open_checkpoint(tmp_path / "one", home=home).read(name).nbytes for name in index["weight_map"]
    )
    prints = [open_checkpoint(tmp_path / name, home=home).fingerprint().total for name in ("one", "many")]
    assert prints[0] == prints[1]


def test_the_card_and_the_mergekit_recipe_say_what_it_is(study: Study, tmp_path: Path) -> None:
    export_model(study, C, tmp_path / "out", measured={"real": {"a": 0.5, "b": 1.25}})
    card = (tmp_path / "out" / "README.md").read_text()
    assert "0.34999999999999998" in card
    assert "1.2500" in card
    assert study.fingerprints["base"] in card
    recipe = yaml.safe_load((tmp_path / "out" / "mergekit.yaml").read_text())
    assert [m["parameters"]["weight"] for m in recipe["models"]] == C.tolist()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]


def test_a_folder_in_use_is_left_alone(study: Study, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="already exists"):
        export_model(study, C, tmp_path / "out", measured={})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def _slow_export(study: Study, folder: Path) -> None:
    import mergecore.export as export

    original = export.write_safetensors

    def slow(*args: object, **kwargs: object) -> None:
        original(*args, **kwargs)  # type: ignore[arg-type]
        (folder.parent / "half").touch()
        time.sleep(30)

    export.write_safetensors = slow  # type: ignore[assignment]
    export.export_model(study, C, folder, measured={})


def test_kill_9_leaves_no_half_checkpoint(study: Study, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_slow_export, args=(study, tmp_path / "out"))
    process.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "half").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "half").exists()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "out").exists()
