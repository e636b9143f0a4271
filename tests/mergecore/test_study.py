"""Content keys of evaluations: what a candidate is made of, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergecore.config_file import parse_config
from mergecore.study import Study, prepare
from mergecore.task_matrix import open_task_matrix
from tests.conftest import random_state, write_checkpoint


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Three models, measured by a callable that is never called."""
    sources = {n: write_checkpoint(tmp_path / f"{n}.safetensors", random_state(s)) for s, n in enumerate("pqrs")}
    return {
        "base": sources["p"],
        "models": [{"name": name, "source": sources[name]} for name in "qrs"],
        "tasks": [{"name": "a", "evaluator": "python", "args": {"function": "statistics:mean"}}],
    }


def study(config: dict[str, Any], tmp_path: Path, **changes: Any) -> Study:
    return prepare(parse_config({**config, **changes}), tmp_path / "home")


def test_models_without_a_coefficient_are_no_part_of_a_candidate(config: dict[str, Any], tmp_path: Path) -> None:
    three = study(config, tmp_path)
    two = study(config, tmp_path, models=config["models"][:2])
    assert three.evaluation_key([0.3, 0.7, 0.0], 0) == three.evaluation_key([0.3, 0.7, -0.0], 0)
    write_checkpoint(tmp_path / "s.safetensors", random_state(9))
    other = study(config, tmp_path)
    assert other.matrix_key != three.matrix_key
    assert other.evaluation_key([0.3, 0.7, 0.0], 0) == three.evaluation_key([0.3, 0.7, 0.0], 0)
    assert other.evaluation_key([0.3, 0.7, 0.1], 0) != three.evaluation_key([0.3, 0.7, 0.1], 0)
    assert other.evaluation_key([0.3, 0.0, 0.1], 0) != three.evaluation_key([0.3, 0.0, 0.1], 0)
    assert three.evaluation_key([0.3, 0.0, 0.0], 0) == two.evaluation_key([0.3, 0.0], 0)
    assert three.evaluation_key([0.3, 0.0, 0.0], 0) != three.evaluation_key([0.0, 0.3, 0.0], 0)
    assert three.evaluation_key([0.0, 0.0, 0.0], 0) == two.evaluation_key([0.0, 0.0], 0)

    wide = open_task_matrix(three.matrix_folder, key=three.matrix_key)
    narrow = open_task_matrix(two.matrix_folder, key=two.matrix_key)
    merged, same = (m.named(m.merge(c)) for m, c in ((wide, [0.3, 0.0, 0.0]), (narrow, [0.3, 0.0])))
    for name, tensor in same.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-7)


def test_columns_that_depend_on_each_other_are_told_apart(config: dict[str, Any], tmp_path: Path) -> None:
    def ties(models: int) -> Study:
        return study(config, tmp_path, models=config["models"][:models], merge={"transform": "ties"})

    assert ties(3).evaluation_key([0.3, 0.7, 0.0], 0) != ties(2).evaluation_key([0.3, 0.7], 0)
    assert ties(3).columns == ()


def test_the_base_counts_in_every_key(config: dict[str, Any], tmp_path: Path) -> None:
    before = study(config, tmp_path).evaluation_key([0.3, 0.0, 0.0], 0)
    write_checkpoint(tmp_path / "p.safetensors", random_state(8))
    assert study(config, tmp_path).evaluation_key([0.3, 0.0, 0.0], 0) != before
    assert study(config, tmp_path, merge={"storage": "bfloat16"}).evaluation_key([0.3, 0.0, 0.0], 0) != before
