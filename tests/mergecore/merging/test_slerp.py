"""SLERP against the formula on unit vectors, and its limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.merging.base import merge_study
from mergecore.merging.slerp import slerp
from mergecore.study import prepare
from mergecore.task_matrix import open_task_matrix


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0.1, 10))
@settings(max_examples=50, deadline=None)
def test_unit_vectors_stay_on_the_sphere_at_even_speed(seed: int, t: float, length: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 6)))
    found = slerp(torch.tensor(length * a), torch.tensor(length * b), t).numpy() / length
    angle = np.arccos(a @ b)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    assert np.arccos(np.clip(found @ a, -1, 1)) == pytest.approx(t * angle, abs=1e-6)


def test_almost_parallel_or_zero_tensors_are_interpolated_in_a_straight_line() -> None:
    a = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(slerp(a, 3 * a, 0.25), 1.5 * a)
    torch.testing.assert_close(slerp(a, -a, 0.25), 0.5 * a)
    torch.testing.assert_close(slerp(a, 0 * a, 0.25), 0.75 * a)


def test_the_ends_are_the_models(pico_config: dict, home: Path) -> None:
    plain = prepare(parse_config(pico_config), home)
    deltas = open_task_matrix(plain.matrix_folder).deltas_MD
    for t, n in ((0.0, 0), (1.0, 1)):
        merged = merge_study(plain, "slerp", {"t": t})
        found = open_task_matrix(merged.matrix_folder).deltas_MD[0]
        torch.testing.assert_close(found, deltas[n], rtol=1e-5, atol=1e-6)


def test_three_models_are_refused(pico_config: dict, home: Path) -> None:
    models = [*pico_config["models"], {"name": "third", "source": pico_config["models"][0]["source"]}]
    with pytest.raises(InputError, match="SLERP merges two models, not 3"):
        merge_study(prepare(parse_config({**pico_config, "models": models}), home), "slerp")
