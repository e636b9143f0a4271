"""Every transform: the contract, a slow twin from the definition, a golden value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mergecore.transforms.base as base_module
from mergecore.checkpoints import from_state_dict
from mergecore.config import parse_config
from mergecore.errors import InputError
from mergecore.task_matrix import TaskMatrix
from mergecore.task_vectors import build_task_matrix
from mergecore.transforms import TRANSFORMS
from mergecore.transforms.base import transform_options
from mergecore.transforms.thresholds import magnitude_threshold
from tests.conftest import random_state

State = dict[str, torch.Tensor]


def built(folder: Path, base: State, models: list[State], transform: str, **options: object) -> TaskMatrix:
    named = {f"m{n}": from_state_dict(model) for n, model in enumerate(models)}
    storage = str(options.pop("storage", "float32"))
    return build_task_matrix(
        folder, from_state_dict(base), named, transform=transform, options=options, storage=storage
    )


def columns(matrix: TaskMatrix) -> list[dict[str, np.ndarray]]:
    """The stored differences of each model, by tensor, in float64."""
    found = []
    for row in matrix.deltas_MD:
        cut = {e.name: row[e.offset : e.offset + e.size].view(e.shape) for e in matrix.layout.entries}
        found.append({name: tensor.double().numpy() for name, tensor in cut.items()})
    return found


def plain(base: State, models: list[State]) -> list[dict[str, np.ndarray]]:
    return [
        {k: (m[k].float() - t.float()).double().numpy() for k, t in base.items() if t.is_floating_point()}
        for m in models
    ]


@pytest.fixture
def states() -> list[State]:
    return [random_state(seed) for seed in range(4)]


@pytest.mark.parametrize("name", list(TRANSFORMS))
class TestContract:
    def test_keeps_shapes_and_is_repeatable(self, name: str, states: list[State], tmp_path: Path) -> None:
        one, two = (built(tmp_path / str(n), states[0], states[1:], name) for n in range(2))
        assert one.key == two.key
        assert torch.equal(one.deltas_MD, two.deltas_MD)
        assert torch.isfinite(one.deltas_MD).all()
        assert set(columns(one)[0]) == set(plain(states[0], states[1:])[0])

    def test_a_model_like_the_base_and_a_frozen_tensor(self, name: str, states: list[State], tmp_path: Path) -> None:
        base, first, second, _ = states
        second["embed"] = first["embed"] = base["embed"]
        matrix = built(tmp_path, base, [first, dict(base), second], name)
        merged = matrix.named(matrix.merge([0.0, 5.0, 0.0]))
        assert all(torch.equal(merged[key], tensor) for key, tensor in base.items())
        assert "embed" in matrix.frozen

    def test_16_bit_storage(self, name: str, states: list[State], tmp_path: Path) -> None:
        full = built(tmp_path, states[0], states[1:], name)
        half = built(tmp_path, states[0], states[1:], name, storage="bfloat16")
        assert half.deltas_MD.dtype == torch.bfloat16
        difference = (half.deltas_MD.float() - full.deltas_MD).abs()
        # elements near a threshold may fall on its other side
        assert (difference < 0.02 * full.deltas_MD.abs().max()).float().mean() > 0.9

    def test_parts_of_a_tensor_are_treated_like_the_whole(
        self, name: str, states: list[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if "dare" in name:
            pytest.skip("what is dropped depends on the part")
        whole = built(tmp_path / "whole", states[0], states[1:], name)
        monkeypatch.setattr(base_module, "PART", 7)
        parts = built(tmp_path / "parts", states[0], states[1:], name)
        assert torch.equal(whole.deltas_MD, parts.deltas_MD)

    def test_unknown_options(self, name: str) -> None:
        with pytest.raises(InputError, match=rf"The transform '{name}': merge\.options\.kep"):
            transform_options(TRANSFORMS.get(name), {"kep": 1}, name)

    def test_options_are_part_of_the_config(self, name: str, pico_config: dict) -> None:
        merge = {"transform": name, "options": {"nothing": 0}}
        with pytest.raises(InputError, match=r"merge\.options\.nothing"):
            parse_config({**pico_config, "merge": merge})

    def test_golden_value(self, name: str, states: list[State], tmp_path: Path) -> None:
        deltas = built(tmp_path, states[0], states[1:], name).deltas_MD.double()
        assert [*deltas.norm(dim=1).tolist(), float(deltas.sum())] == pytest.approx(GOLDEN[name], abs=2e-4)


GOLDEN = {
    "none": (22.5157, 20.09221, 19.40866, -77.77697),
    "magnitude": (18.56747, 16.33505, 15.80944, -32.25416),
    "ties": (14.11725, 12.93773, 12.83134, -19.00502),
    "dare": (48.51691, 45.67413, 41.20833, -61.27016),
    "dare_ties": (41.2436, 38.57198, 35.27803, -49.05941),
    "breadcrumbs": (16.12847, 14.64659, 14.25055, -22.66567),
    "tsv_m": (12.41105, 11.05386, 10.7406, -20.96381),
}
"""Norms of the three columns and the sum of all their elements."""


def twin_magnitude(columns: list[dict[str, np.ndarray]], keep: float) -> list[dict[str, np.ndarray]]:
    found = []
    for column in columns:
        everything = np.sort(np.abs(np.concatenate([v.ravel() for v in column.values()])))[::-1]
        threshold = everything[max(1, int(keep * len(everything))) - 1]
        found.append({k: np.where(np.abs(v) >= threshold, v, 0.0) for k, v in column.items()})
    return found


def twin_ties(columns: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The TIES task vector, element by element from the paper's three steps; ``columns`` are trimmed."""
    merged = {}
    for key, first in columns[0].items():
        stacked = np.stack([column[key].ravel() for column in columns])
        out = np.zeros(stacked.shape[1])
        for i in range(stacked.shape[1]):
            elected = np.sign(stacked[:, i].sum())
            kept = [v for v in stacked[:, i] if elected != 0 and np.sign(v) == elected]
            out[i] = sum(kept) / len(kept) if kept else 0.0
        merged[key] = out.reshape(first.shape)
    return merged


@pytest.mark.parametrize("keep", [0.05, 0.2, 0.7, 1.0])
def test_magnitude_and_ties_are_their_definitions(states: list[State], tmp_path: Path, keep: float) -> None:
    expected = twin_magnitude(plain(states[0], states[1:]), keep)
    found = columns(built(tmp_path / "m", states[0], states[1:], "magnitude", keep=keep))
    for one, two in zip(found, expected, strict=True):
        assert all(np.array_equal(one[key], two[key]) for key in two)
    ties = columns(built(tmp_path / "t", states[0], states[1:], "ties", keep=keep))
    for key, value in twin_ties(expected).items():
        np.testing.assert_allclose(sum(column[key] for column in ties), value, rtol=1e-6, atol=1e-7)
        for column, trimmed in zip(ties, expected, strict=True):
            assert np.all((column[key] == 0) | (np.sign(column[key]) == np.sign(trimmed[key])))


def test_dare_keeps_the_stated_share_and_the_expectation(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.zeros(200, 500)}
    models = [{"w": torch.randn(200, 500, generator=generator)} for _ in range(2)]
    found = columns(built(tmp_path, base, models, "dare", drop=0.8))
    for column, model in zip(found, models, strict=True):
        original = model["w"].double().numpy()
        kept = column["w"] != 0
        assert abs(kept.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / kept.size)
        np.testing.assert_allclose(column["w"][kept], original[kept] / 0.2, rtol=1e-6)
    assert abs(np.corrcoef(found[0]["w"].ravel() != 0, found[1]["w"].ravel() != 0)[0, 1]) < 0.02
    again = columns(built(tmp_path / "s", base, models, "dare", drop=0.8, seed=1))
    assert not np.array_equal(again[0]["w"], found[0]["w"])
    assert np.array_equal(columns(built(tmp_path / "z", base, models, "dare", drop=0.0))[0]["w"], models[0]["w"])


def test_dare_ties_is_dare_then_the_election(states: list[State], tmp_path: Path) -> None:
    dropped = columns(built(tmp_path / "d", states[0], states[1:], "dare", drop=0.5, seed=3))
    found = columns(built(tmp_path / "t", states[0], states[1:], "dare_ties", drop=0.5, seed=3))
    for key, value in twin_ties(dropped).items():
        np.testing.assert_allclose(sum(column[key] for column in found), value, rtol=1e-5, atol=1e-6)


def test_breadcrumbs_is_its_definition(states: list[State], tmp_path: Path) -> None:
    found = columns(built(tmp_path, states[0], states[1:], "breadcrumbs", smallest=0.5, largest=0.1))
    for column, original in zip(found, plain(states[0], states[1:]), strict=True):
        for key, value in original.items():
            order = np.argsort(np.abs(value.ravel()), kind="stable")
            expected = value.ravel().copy()
            expected[order[: int(0.5 * value.size)]] = 0
            expected[order[value.size - int(0.1 * value.size) :]] = 0
            assert np.array_equal(column[key].ravel(), expected)
    with pytest.raises(InputError, match="together must be below 1"):
        transform_options(TRANSFORMS.get("breadcrumbs"), {"smallest": 0.9, "largest": 0.2}, "breadcrumbs")


def test_tsv_m_is_its_definition(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deltas = rng.normal(size=(3, 12, 9))
    vectors = rng.normal(size=(3, 5))
    base = {"w": torch.zeros(12, 9), "b": torch.zeros(5)}
    models = [
        {"w": torch.tensor(d, dtype=torch.float32), "b": torch.tensor(v).float()}
        for d, v in zip(deltas, vectors, strict=True)
    ]
    found = columns(built(tmp_path, base, models, "tsv_m"))
    kept = [np.linalg.svd(d, full_matrices=False) for d in deltas]
    left = np.concatenate([u[:, :3] for u, _, _ in kept], axis=1)
    right = np.concatenate([vh[:3] for _, _, vh in kept], axis=0)

    def whiten(x: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(x.T @ x)
        return x @ (vectors / np.sqrt(values)) @ vectors.T

    expected = whiten(left) @ np.diag(np.concatenate([s[:3] for _, s, _ in kept])) @ whiten(right.T).T
    np.testing.assert_allclose(sum(column["w"] for column in found), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sum(column["b"] for column in found), vectors.mean(axis=0), rtol=1e-6)
    assert all(np.linalg.matrix_rank(column["w"], tol=1e-4) == 3 for column in found)


@given(st.integers(1, 400), st.floats(0.001, 1.0), st.integers(0, 2**31 - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_threshold_is_the_kth_largest(size: int, keep: float, seed: int, ties: bool) -> None:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    vector = vector.round() if ties else vector
    wanted = max(1, int(keep * size + 1e-9))
    found = magnitude_threshold(vector, keep)
    expected = 0.0 if wanted >= size else float(vector.abs().sort(descending=True).values[wanted - 1])
    assert found == expected


def test_adapters_are_expanded_for_transforms_of_elements(tmp_path: Path) -> None:
    """The product of the factors is what is trimmed."""
    import json

    from safetensors.torch import save_file

    from mergecore.alignment import align
    from mergecore.checkpoints import open_checkpoint

    generator = torch.Generator().manual_seed(0)
    base = {"layer.weight": torch.randn(6, 4, generator=generator), "norm.weight": torch.ones(4)}
    save_file(base, tmp_path / "base.safetensors")
    expected = []
    for n in range(2):
        a, b = torch.randn(2, 4, generator=generator), torch.randn(6, 2, generator=generator)
        (tmp_path / f"a{n}").mkdir()
        names = {"base_model.model.layer.lora_A.weight": a, "base_model.model.layer.lora_B.weight": b}
        save_file(names, tmp_path / f"a{n}" / "adapter_model.safetensors")
        (tmp_path / f"a{n}" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
        expected.append({"layer.weight": (2 * b.double() @ a.double()).numpy()})
    opened = {f"a{n}": open_checkpoint(tmp_path / f"a{n}", home=tmp_path) for n in range(2)}
    aligned = align(open_checkpoint(tmp_path / "base.safetensors", home=tmp_path), opened)
    matrix = build_task_matrix(
        tmp_path / "m", aligned.base, aligned.models, transform="magnitude", options={"keep": 0.5}
    )
    assert not matrix.factors
    for found, twin in zip(columns(matrix), twin_magnitude(expected, 0.5), strict=True):
        np.testing.assert_allclose(found["layer.weight"], twin["layer.weight"], rtol=1e-5)


def test_what_is_not_finite_is_refused(states: list[State], tmp_path: Path) -> None:
    states[2]["layer.bias"][3] = float("nan")
    with pytest.raises(InputError, match=r"'layer\.bias' of the model 'm1' or of the base is not finite"):
        built(tmp_path, states[0], states[1:], "none")
    states[2]["layer.bias"][3] = 1e6
    with pytest.raises(InputError, match="too large for float16"):
        built(tmp_path, states[0], states[1:], "none", storage="float16")
