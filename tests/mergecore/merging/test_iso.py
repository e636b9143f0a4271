"""Iso-C and Iso-CTS against slow twins written from their algorithms, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergecore.merging.iso import IsoC, IsoCts, IsoCtsOptions
from mergecore.options import PluginOptions


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def iso_cts(common: float, deltas: np.ndarray) -> np.ndarray:
    merge = IsoCts(IsoCtsOptions(common=common))
    return merge.tensor(torch.tensor(deltas).float(), torch.zeros(deltas.shape[1:]), name="w").double().numpy()


def iso_c(deltas: np.ndarray) -> np.ndarray:
    merge = IsoC(PluginOptions())
    return merge.tensor(torch.tensor(deltas).float(), torch.zeros(deltas.shape[1:]), name="w").double().numpy()


def polar(matrix: np.ndarray) -> np.ndarray:
    """The orthogonal factor X (XᵀX)^(-1/2), by an eigendecomposition."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    return matrix @ (vectors / np.sqrt(values)) @ vectors.T


@pytest.mark.parametrize("shape", [(3, 12, 7), (2, 5, 9), (4, 1, 6), (3, 6, 1)])
def test_iso_c_has_the_directions_of_the_sum_and_equal_singular_values(shape: tuple[int, ...]) -> None:
    deltas = random(*shape)
    u, s, vh = np.linalg.svd(deltas.sum(axis=0), full_matrices=False)
    found = iso_c(deltas)
    np.testing.assert_allclose(found, s.mean() * u @ vh, atol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(found, compute_uv=False), s.mean(), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (2,), (3, 2, 4, 3)])
def test_what_is_no_matrix_is_averaged(shape: tuple[int, ...]) -> None:
    deltas = random(*shape)
    np.testing.assert_allclose(iso_c(deltas), deltas.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(iso_cts(0.8, deltas), deltas.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("common", [0.0, 0.4, 0.8, 1.0])
def test_iso_cts_is_its_algorithm(common: float) -> None:
    deltas = random(3, 14, 10, seed=1)
    models, rank = 3, 10
    own = round((rank - int(rank * common)) / models)
    shared = rank - own * models
    u, s, vh = np.linalg.svd(deltas.sum(axis=0), full_matrices=False)
    u_common = u[:, :shared]
    left, right, values = [u_common], [vh[:shared]], [s[:shared]]
    for delta in deltas:
        rest = (np.eye(14) - u_common @ u_common.T) @ delta
        u_own, s_own, vh_own = np.linalg.svd(rest, full_matrices=False)
        left.append(u_own[:, :own])
        right.append(vh_own[:own])
        values.append(s_own[:own])
    expected = np.concatenate(values).mean() * polar(np.concatenate(left, axis=1)) @ polar(np.concatenate(right).T).T
    np.testing.assert_allclose(iso_cts(common, deltas), expected, atol=1e-4)


def test_iso_cts_with_everything_common_is_iso_c() -> None:
    deltas = random(4, 8, 8)
    np.testing.assert_allclose(iso_cts(1.0, deltas), iso_c(deltas), atol=1e-5)


def test_more_models_than_directions() -> None:
    found = iso_cts(0.0, random(5, 3, 4))
    assert np.isfinite(found).all()
