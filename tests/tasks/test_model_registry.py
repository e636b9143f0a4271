"""MLflow's model registry: checkpoints go in once, with their lineage; aliases move; other studies take them out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergecore.checkpoints.checkpoint import open_checkpoint
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.export import FACTS, export_model
from mergecore.patterns import resolve_sources
from mergecore.study import prepare
from tasks.model_registry import CONTENT, promote, register
from tasks.tracking import mlflow_client, tracking_uri

NAME = "Digits & <b> 'co' 🐈"
C = np.array([0.25, 0.75])


@pytest.fixture
def merged(pico_config: dict[str, Any], home: Path, tmp_path: Path) -> Path:
    """An exported checkpoint."""
    study = prepare(parse_config(pico_config), home)
    folder = tmp_path / "merged"
    export_model(study, C, folder, measured={"predicted": {"a": 0.1}, "real": {"a": 0.5, "b": 0.75}})
    return folder


def client(home: Path) -> Any:
    return mlflow_client(tracking_uri(None, home))


def aliases(home: Path, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client(home).get_registered_model(name).aliases.items()}


def test_the_same_checkpoint_is_one_version_with_its_lineage(merged: Path, home: Path, pico_config: Any) -> None:
    first = register(merged, NAME, home)
    assert (first.source, first.metrics) == (f"models:/{NAME}/1", {"a": 0.5, "b": 0.75})
    assert register(merged, NAME, home, alias="tonight").version == "1"

    assert aliases(home, first.name) == {"candidate": "1", "tonight": "1"}
    version = client(home).get_model_version(NAME, "1")
    facts = json.loads((merged / FACTS).read_text())
    assert version.tags["method"] == "map"
    assert version.tags["base"] == pico_config["base"]
    assert version.tags["base.content"] == facts["fingerprints"]["base"]
    assert version.tags["model.second"] == pico_config["models"][1]["source"]
    assert version.tags["model.second.content"] == facts["fingerprints"]["models"]["second"]
    assert (version.tags["coefficient.first"], version.tags["metric.b"]) == ("0.25", "0.75")
    assert len(version.tags[CONTENT]) == 64


def test_the_candidate_becomes_the_champion(merged: Path, home: Path, tmp_path: Path) -> None:
    register(merged, "digits", home)
    before, after = promote("digits", home)
    assert (before, after.version, dict(after.metrics)) == (None, "1", {"a": 0.5, "b": 0.75})
    other = shutil.copytree(merged, tmp_path / "other")
    (other / "README.md").write_text("another card")
    assert register(other, "digits", home).version == "2"
    before, after = promote("digits", home)
    assert before is not None
    assert (before.version, after.version) == ("1", "2")
    assert aliases(home, "digits") == {"candidate": "2", "champion": "2"}
    assert promote("digits", home, version="1")[1].version == "1"


def test_a_study_merges_what_an_alias_means_now(
    merged: Path, home: Path, tmp_path: Path, pico_config: dict[str, Any]
) -> None:
    register(merged, "team cats", home, alias="champion")
    register(merged, "team dogs", home, alias="champion")
    register(merged, "other", home, alias="champion")
    register(merged, "team ants", home, alias="candidate")
    models = [{"name": "*", "source": "models:/team *@champion"}]
    tasks = [{**pico_config["tasks"][0], "name": "*"}]
    config = resolve_sources(parse_config({**pico_config, "models": models, "tasks": tasks}), home)
    assert [(model.name, model.source) for model in config.models] == [
        ("cats", "models:/team cats/1"),
        ("dogs", "models:/team dogs/1"),
    ]
    assert [task.name for task in config.tasks] == ["cats", "dogs"]
    own = open_checkpoint(str(merged), home=home).fingerprint().total
    assert open_checkpoint("models:/team cats/1", home=home).fingerprint().total == own
    assert open_checkpoint("models:/team cats@champion", home=home).fingerprint().total == own
    assert prepare(config, home).models == ("cats", "dogs")

    newer = shutil.copytree(merged, tmp_path / "newer")
    (newer / "README.md").write_text("newer")
    register(newer, "team dogs", home, alias="champion")
    again = resolve_sources(parse_config({**pico_config, "models": models, "tasks": tasks}), home)
    assert again.models[1].source == "models:/team dogs/2"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("models:/nobody@champion", "Cannot find 'models:/nobody@champion'"),
        ("models:/nobody/3", "Cannot fetch 'models:/nobody/3'"),
        ("models:nobody", "names no registered model"),
        ("models:/a/b/c", "names no registered model"),
    ],
)
def test_what_the_registry_does_not_have(home: Path, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        open_checkpoint(source, home=home)
    assert "\n" not in str(refused.value)


def test_refusals_are_one_sentence(merged: Path, home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no checkpoint that mergecore exported"):
        register(tmp_path, "digits", home)
    with pytest.raises(InputError, match="Cannot promote 'nobody'"):
        promote("nobody", home)
    register(merged, "digits", home, alias="other")
    with pytest.raises(InputError, match="No version of 'digits' is 'candidate'"):
        promote("digits", home)
    with pytest.raises(InputError, match="Cannot register the checkpoint"):
        register(merged, "digits", home, alias="no spaces / allowed")
