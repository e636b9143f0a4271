"""Every transform: the contract, a slow twin from the definition, a golden value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import mergecore.transforms.base as base_module
from mergecore.checkpoints.alignment import align
from mergecore.checkpoints.checkpoint import Checkpoint, from_state_dict, open_checkpoint
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.task_matrix import TaskMatrix
from mergecore.task_vectors import build_task_matrix
from mergecore.transforms import TRANSFORMS
from mergecore.transforms.base import transform_options
from mergecore.transforms.thresholds import magnitude_threshold
from mergecore.transforms.tsv_m import nearest_orthonormal
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

    def test_a_tensor_that_one_model_did_not_change(self, name: str, states: list[State], tmp_path: Path) -> None:
        base, first, second, third = states
        second["layer.weight"], second["layer.bias"] = base["layer.weight"], base["layer.bias"]
        found = columns(built(tmp_path, base, [first, second, third], name))
        for key in ("layer.weight", "layer.bias"):
            assert not found[1][key].any()
            assert all(np.isfinite(column[key]).all() and column[key].any() for column in (found[0], found[2]))
        assert found[1]["embed"].any()

    def test_models_that_are_all_equal(self, name: str, states: list[State], tmp_path: Path) -> None:
        found = columns(built(tmp_path, states[0], [dict(states[1]) for _ in range(3)], name))
        assert all(np.isfinite(value).all() for value in found[0].values())
        if "dare" not in name:  # each model's elements are drawn
            for key, value in found[0].items():
                # singular vectors that N models share are told from one another by rounding alone
                assert all(np.allclose(column[key], value, atol=1e-6) for column in found[1:])

    def test_matrices_of_one_row_or_column(self, name: str, tmp_path: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = {"row": (1, 9), "column": (9, 1), "single": (1, 1)}
        base = {key: torch.zeros(shape) for key, shape in shapes.items()}
        models = [{key: torch.randn(shape, generator=generator) for key, shape in shapes.items()} for _ in range(3)]
        found = columns(built(tmp_path, base, models, name))
        for column in found:
            assert {key: value.shape for key, value in column.items()} == shapes
            assert all(np.isfinite(value).all() for value in column.values())
        assert any(column["row"].any() for column in found)
        assert any(column["column"].any() for column in found)

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
        whole = built(tmp_path / "whole", states[0], states[1:], name)
        monkeypatch.setattr(base_module, "PART", 7)
        parts = built(tmp_path / "parts", states[0], states[1:], name)
        assert torch.equal(whole.deltas_MD, parts.deltas_MD)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_what_is_not_finite_is_refused(self, name: str, value: float, states: list[State], tmp_path: Path) -> None:
        states[2]["layer.bias"][3] = value
        with pytest.raises(InputError, match=r"'layer\.bias' of the model 'm1' or of the base is not finite"):
            built(tmp_path, states[0], states[1:], name)
        assert not list(tmp_path.iterdir())

    def test_adapters_are_transformed_as_what_they_add(self, name: str, tmp_path: Path) -> None:
        models, adapters = with_adapters(tmp_path)
        base = {"layer.weight": torch.zeros(12, 9), "norm.weight": torch.ones(4)}
        aligned = align(from_state_dict(base), adapters)
        kept = build_task_matrix(tmp_path / "adapters", aligned.base, aligned.models, transform=name)
        expanded = built(tmp_path / "models", base, [base | {"layer.weight": model} for model in models], name)
        assert bool(kept.factors) == TRANSFORMS.get(name).keeps_low_rank
        for coefficients in np.eye(3):
            one, two = (matrix.named(matrix.merge(coefficients))["layer.weight"] for matrix in (kept, expanded))
            assert one.any()
            assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)

    def test_unknown_options(self, name: str) -> None:
        with pytest.raises(InputError, match=rf"The transform '{name}': merge\.options\.kep"):
            transform_options(TRANSFORMS.get(name), {"kep": 1}, name)

    def test_options_are_part_of_the_config(self, name: str, pico_config: dict) -> None:
        merge = {"transform": name, "options": {"nothing": 0}}
        with pytest.raises(InputError, match=r"merge\.options\.nothing"):
            parse_config({**pico_config, "merge": merge})

    def test_golden_value(self, name: str, states: list[State], tmp_path: Path) -> None:
        deltas = built(tmp_path, states[0], states[1:], name).deltas_MD.double()
        found = [*deltas.norm(dim=1).tolist(), float(deltas.sum())]
        assert name in GOLDEN, f"a new transform; its golden value is {tuple(round(value, 5) for value in found)}"
        assert found == pytest.approx(GOLDEN[name], abs=2e-4)


GOLDEN = {
    "none": (22.5157, 20.09221, 19.40866, -77.77697),
    "magnitude": (18.56747, 16.33505, 15.80944, -32.25416),
    "ties": (14.11725, 12.93773, 12.83134, -19.00502),
    "dare": (48.51691, 45.67413, 41.20833, -61.27016),
    "dare_ties": (41.2436, 38.57198, 35.27803, -49.05941),
    "breadcrumbs": (16.12847, 14.64659, 14.25055, -22.66567),
    "consensus": (19.10664, 17.6119, 16.40348, -70.80466),
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


@pytest.mark.parametrize("rounded", [False, True])
def test_breadcrumbs_is_its_definition(states: list[State], tmp_path: Path, rounded: bool) -> None:
    if rounded:  # many equal magnitudes
        states = [{key: tensor.round() for key, tensor in state.items()} for state in states]
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


def test_tsv_m_takes_no_part_of_what_singular_values_of_zero_leave_open(tmp_path: Path) -> None:
    """Of rank 1 where 3 triplets are kept, and zero: only vectors that the models have are made orthogonal."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(12, 2)), rng.normal(size=(9, 2))
    deltas = [np.outer(left[:, 0], right[:, 0]), np.outer(left[:, 1], right[:, 1]), np.zeros((12, 9))]
    base = {"w": torch.zeros(12, 9), "b": torch.zeros(2)}
    models = [{"w": torch.tensor(delta).float(), "b": torch.ones(2)} for delta in deltas]
    found = columns(built(tmp_path, base, models, "tsv_m"))

    def whiten(vectors: np.ndarray) -> np.ndarray:
        unit = vectors / np.linalg.norm(vectors, axis=0)
        values, directions = np.linalg.eigh(unit.T @ unit)
        white: np.ndarray = unit @ (directions / np.sqrt(values)) @ directions.T
        return white

    sizes = np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=0)
    for n in range(2):
        expected = sizes[n] * np.outer(whiten(left)[:, n], whiten(right)[:, n])
        np.testing.assert_allclose(found[n]["w"], expected, atol=1e-4)
    assert not found[2]["w"].any()


def test_tsv_m_of_equal_models_is_their_leading_part(tmp_path: Path) -> None:
    delta = np.random.default_rng(0).normal(size=(9, 12))
    base = {"w": torch.zeros(9, 12)}
    found = columns(built(tmp_path, base, [{"w": torch.tensor(delta).float()} for _ in range(3)], "tsv_m"))
    u, s, vh = np.linalg.svd(delta, full_matrices=False)
    np.testing.assert_allclose(sum(column["w"] for column in found), (u[:, :3] * s[:3]) @ vh[:3], atol=1e-4)


def test_tsv_m_counts_a_model_that_equals_the_base(states: list[State], tmp_path: Path) -> None:
    """It has no row of differences, and yet is one of those that are averaged and share the rank."""
    base, first, second, _ = states
    without = build_task_matrix(
        tmp_path,
        from_state_dict(base),
        {n: from_state_dict(state) for n, state in {"one": first, "same": dict(base), "two": second}.items()},
        transform="tsv_m",
    )
    assert without.layout.dense_models == (0, 2)
    for column, model in zip(columns(without), (first, second), strict=True):
        np.testing.assert_allclose(column["layer.bias"], (model["layer.bias"] - base["layer.bias"]) / 3, rtol=1e-5)
        assert np.linalg.matrix_rank(column["layer.weight"], tol=1e-4) == 1  # of five directions, three models


@pytest.mark.parametrize("shape", [(5, 5), (5, 9), (9, 5)])
def test_nearest_orthonormal_without_full_rank_is_the_partial_isometry(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1]))
    found = nearest_orthonormal(torch.tensor(matrix).float()).double().numpy()
    expected = matrix @ np.linalg.pinv(scipy.linalg.sqrtm(matrix.T @ matrix).real, rcond=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(st.integers(1, 400), st.floats(0.001, 1.0), st.integers(0, 2**31 - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_threshold_is_the_kth_largest(size: int, keep: float, seed: int, ties: bool) -> None:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    vector = vector.round() if ties else vector
    wanted = max(1, int(keep * size + 1e-9))
    found = magnitude_threshold(vector, keep)
    expected = 0.0 if wanted >= size else float(vector.abs().sort(descending=True).values[wanted - 1])
    assert found == expected


def with_adapters(folder: Path) -> tuple[list[torch.Tensor], dict[str, Checkpoint]]:
    """Three products of rank 2 for ``layer.weight`` [12, 9], and adapters that stand for them."""
    generator = torch.Generator().manual_seed(0)
    products: list[torch.Tensor] = []
    opened: dict[str, Checkpoint] = {}
    for n in range(3):
        a, b = torch.randn(2, 9, generator=generator), torch.randn(12, 2, generator=generator)
        (folder / f"a{n}").mkdir()
        names = {"base_model.model.layer.lora_A.weight": a, "base_model.model.layer.lora_B.weight": b}
        save_file(names, folder / f"a{n}" / "adapter_model.safetensors")
        (folder / f"a{n}" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
        products.append(2 * (b @ a))
        opened[f"a{n}"] = open_checkpoint(folder / f"a{n}", home=folder)
    return products, opened


def test_what_is_too_large_for_the_storage_is_refused(states: list[State], tmp_path: Path) -> None:
    states[2]["layer.bias"][3] = 1e6
    with pytest.raises(InputError, match="too large for float16"):
        built(tmp_path, states[0], states[1:], "none", storage="float16")
    states[2]["layer.bias"][:] = 2e4  # and ten times as much does not fit
    with pytest.raises(InputError, match=r"transformed tensor 'layer\.bias' is too large for float16"):
        built(tmp_path, states[0], states[1:], "dare", drop=0.9, storage="float16")


def test_consensus_keeps_what_matters_to_enough_tasks(states: list[State], tmp_path: Path) -> None:
    for agree, threshold in ((1, 0.4), (2, 0.4), (2, 1.5), (3, 0.2)):
        found = columns(
            built(
                tmp_path / f"{agree}{threshold}", states[0], states[1:], "consensus", agree=agree, threshold=threshold
            )
        )
        original = plain(states[0], states[1:])
        for key in original[0]:
            stacked = np.stack([column[key].ravel() for column in original])
            for i in range(stacked.shape[1]):
                votes = sum(abs(v) >= threshold * abs(stacked[:, i].sum() - v) for v in stacked[:, i])
                kept = stacked[:, i] if votes >= agree else np.zeros(len(stacked))
                assert np.array_equal([column[key].ravel()[i] for column in found], kept)
