"""Data sets of the hub, fetched from a small one on this machine: by name and commit, no more than needed, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mergecore.data.small_hub import COMMIT, small_hub
from tests.mergecore.data.test_sources import NAMES, ROWS, hub_folder

READ = """
import json, sys
from pathlib import Path
from mergecore.config import DatasetConfig
from mergecore.data.cache import build_once
from mergecore.data.columns import labels
from mergecore.data.sources import find_source
from mergecore.errors import InputError

def read(number, config):
    dataset = DatasetConfig(**config)
    try:
        source = find_source(dataset, Path("home"))
        table = source.open("test", Path(f"scratch{number}-{sys.argv[2]}"))
        y, names = labels(table, dataset)
    except InputError as error:
        return str(error)
    return [source.facts[-1], table.rows["sentence"][:], y.tolist(), names]

if sys.argv[2] == "prepare":
    import datasets
    datasets.load_dataset("pico/animals", "main")
print(json.dumps([read(*item) for item in enumerate(json.loads(sys.argv[1]))]))
"""
ANIMALS = {"path": "pico/animals", "config": "main"}
READY = [COMMIT, ROWS["test"]["sentence"], ROWS["test"]["label"], NAMES]


def read(folder: Path, configs: list[dict[str, str]], step: str, **variables: str) -> list[Any]:
    """What a process of its own reads: libraries take the hub's address from the environment when they are imported."""
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    command = [sys.executable, "-c", READ, json.dumps(configs), step]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    hub_folder(tmp_path / "repository")
    asked = [
        ANIMALS,
        {**ANIMALS, "revision": COMMIT},
        {**ANIMALS, "revision": "no-such"},
        {**ANIMALS, "config": "mian"},
        {"path": "pico/plants"},
    ]
    with small_hub("pico/animals", tmp_path / "repository") as (address, sent):
        by_name, by_commit, revision, config, plants = read(
            tmp_path, asked, "online", HF_ENDPOINT=address, HF_HUB_OFFLINE="0"
        )
        assert by_name == by_commit == READY
        assert "'pico/animals' is no local path and could not be fetched from the hub: it has no rev" in revision
        assert "'mian' not found. Available: ['main', 'other']" in config
        assert "there is none of that name, or it is private" in plants
        assert sorted(sent) == ["README.md", "main/test-00000-of-00001.parquet"]  # once, and no other split
        offline = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "1"}
        (unprepared,) = read(tmp_path, [ANIMALS], "offline", **offline)
        assert "cannot be read: Couldn't reach 'pico/animals' on the Hub" in unprepared
        read(tmp_path, [], "prepare", HF_ENDPOINT=address, HF_HUB_OFFLINE="0")  # as another program does
    assert read(tmp_path, [ANIMALS], "offline again", **offline) == [READY]
    (other,) = read(tmp_path, [{**ANIMALS, "revision": COMMIT[::-1]}], "offline other", **offline)
    assert "of 'pico/animals' another revision was fetched before" in other
