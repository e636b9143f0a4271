"""Every merge of N task vectors into one: the contract, and a golden value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mergecore.merging.base as base_module
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.merging import MERGES
from mergecore.merging.base import merge_study, own_tasks
from mergecore.study import Study, prepare
from mergecore.task_matrix import build_seconds, open_task_matrix
from tests.conftest import rewrite

QUICK: dict[str, dict[str, Any]] = {
    "fisher": {"examples": 8},
    "regmean": {"examples": 8},
    "adamerging_task": {"steps": 3},
    "adamerging_layer": {"steps": 3},
    "ls": {"steps": 6, "learning_rate": 1e-2},
    "epo": {"steps": 6, "learning_rate": 1e-2},
    "mgda": {"steps": 6, "learning_rate": 1e-2},
}
"""Options that keep the tests short."""


def two_models(pico_config: dict[str, Any], home: Path, **changes: Any) -> Study:
    """The pico study, its tasks named after its models."""
    dataset = pico_config["tasks"][0]["dataset"]
    tasks = [{"name": name, "dataset": dataset} for name in ("first", "second")]
    return prepare(parse_config({**pico_config, "tasks": tasks, **changes}), home)


def column(study: Study) -> torch.Tensor:
    matrix = open_task_matrix(study.matrix_folder, key=study.matrix_key, models=study.models)
    return matrix.deltas_MD.float().clone()


@pytest.mark.parametrize("name", list(MERGES))
class TestContract:
    def test_one_finite_column_that_repeats(self, name: str, pico_config: dict, tmp_path: Path) -> None:
        studies = [merge_study(two_models(pico_config, tmp_path / str(i)), name, QUICK.get(name)) for i in range(2)]
        one, two = map(column, studies)
        assert studies[0].models == (name,)
        assert studies[0].matrix_key == studies[1].matrix_key
        assert one.shape[0] == 1
        assert torch.isfinite(one).all()
        assert one.abs().max() > 0
        assert torch.equal(one, two)

    def test_it_is_built_once(self, name: str, pico_config: dict, home: Path, monkeypatch: Any) -> None:
        plain = two_models(pico_config, home)
        steps: list[tuple[int, int]] = []
        built = merge_study(plain, name, QUICK.get(name), progress=lambda done, count: steps.append((done, count)))
        assert steps[-1] == (2000, 2000)
        assert all(0 <= done <= count for done, count in steps)
        assert build_seconds(built.matrix_folder) > 0
        monkeypatch.setattr(base_module, "_build", None)
        assert merge_study(plain, name, QUICK.get(name)).matrix_key == built.matrix_key

    def test_it_is_evaluated_like_any_task_matrix(self, name: str, pico_config: dict, home: Path) -> None:
        plain = two_models(pico_config, home)
        merged = merge_study(plain, name, QUICK.get(name))
        keys = {merged.evaluation_key([1.0], m) for m in merged.search_tasks}
        assert not keys & {plain.evaluation_key([1.0, 1.0], m) for m in plain.search_tasks}
        outcomes = CandidateEvaluator(merged).evaluate([0.0], merged.search_tasks)
        base = CandidateEvaluator(plain).evaluate([0.0, 0.0], plain.search_tasks)
        assert [o.metrics for o in outcomes] == [o.metrics for o in base]
        assert not any(o.reason for o in CandidateEvaluator(merged).evaluate([1.0], merged.search_tasks))

    def test_a_model_like_the_base_and_a_frozen_tensor(self, name: str, pico_config: dict, home: Path) -> None:
        base = load_file(Path(pico_config["base"]) / "model.safetensors")
        frozen = next(key for key in base if key.endswith("layernorm.weight"))
        rewrite(pico_config["models"][0]["source"], lambda state: state.update(base))
        rewrite(pico_config["models"][1]["source"], lambda state: state.update({frozen: base[frozen]}))
        merged = merge_study(two_models(pico_config, home), name, QUICK.get(name))
        assert torch.isfinite(column(merged)).all()
        matrix = open_task_matrix(merged.matrix_folder, key=merged.matrix_key)
        assert torch.equal(matrix.frozen[frozen], base[frozen])

    def test_16_bit_storage(self, name: str, pico_config: dict, home: Path) -> None:
        full = merge_study(two_models(pico_config, home), name, QUICK.get(name))
        half = merge_study(two_models(pico_config, home, merge={"storage": "bfloat16"}), name, QUICK.get(name))
        matrix = open_task_matrix(half.matrix_folder, key=half.matrix_key)
        assert matrix.deltas_MD.dtype == torch.bfloat16
        assert full.matrix_key != half.matrix_key
        difference = (column(half) - column(full)).abs()
        # what depends on gradients may differ more where they nearly vanish
        assert (difference < 0.02 * column(full).abs().max()).float().mean() > 0.95

    def test_unknown_options(self, name: str, pico_config: dict, home: Path) -> None:
        with pytest.raises(InputError, match=rf"The merge '{name}': options\.kep"):
            merge_study(two_models(pico_config, home), name, {"kep": 1})

    def test_golden_value(self, name: str, pico_config: dict, home: Path) -> None:
        found = column(merge_study(two_models(pico_config, home), name, QUICK.get(name))).double()
        values = [float(found.norm()), float(found.sum())]
        assert name in GOLDEN, f"a new merge; its golden value is {tuple(round(value, 5) for value in values)}"
        assert values == pytest.approx(GOLDEN[name], abs=2e-3)


GOLDEN: dict[str, tuple[float, float]] = {
    "slerp": (8.44047, 1.96126),
    "fisher": (7.34234, -0.95789),
    "regmean": (7.42982, -0.80866),
    "adamerging_task": (3.69631, 1.13109),
    "adamerging_layer": (3.66682, 1.12470),
    "iso_c": (9.46874, -3.44030),
    "iso_cts": (10.21748, -3.76136),
    "ls": (0.61286, -0.75214),
    "epo": (0.62246, -0.57963),
    "mgda": (0.61395, -0.31757),
}
"""Norm of the merged task vector, and the sum of its elements."""


def test_unknown_merge(pico_config: dict, home: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'slerp'"):
        merge_study(two_models(pico_config, home), "slurp")


def test_a_merge_that_is_not_finite_leaves_nothing(pico_config: dict, home: Path, monkeypatch: Any) -> None:
    from mergecore.merging.iso import IsoC

    plain = two_models(pico_config, home)
    before = sorted(path.name for path in plain.matrix_folder.parent.iterdir())
    monkeypatch.setattr(IsoC, "tensor", lambda self, deltas, base, *, name: deltas[0] * np.nan)
    with pytest.raises(InputError, match="'iso_c' gives values that are not finite in the tensor"):
        merge_study(plain, "iso_c")
    assert sorted(path.name for path in plain.matrix_folder.parent.iterdir()) == before


def test_own_tasks_are_those_of_the_name_or_the_head(pico_config: dict, home: Path) -> None:
    assert own_tasks(two_models(pico_config, home), "fisher") == [[0], [1]]
    with pytest.raises(InputError, match="no task is called 'first'"):
        own_tasks(prepare(parse_config(pico_config), home), "fisher")


def test_every_merge_has_a_golden_value() -> None:
    assert list(GOLDEN) == list(MERGES), json.dumps(sorted(MERGES))
