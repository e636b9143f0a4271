"""Labelled arrays: decoded once, drawn by class, faults named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore.data import load_arrays
from mergecore.data.cache import decoded
from mergecore.data.subsets import stratified
from mergecore.errors import InputError


def write(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def load(path: str, home: Path, *, split: str = "test", limit: int | None = None, seed: int = 0):
    return load_arrays(path, split=split, limit=limit, seed=seed, home=home)


def test_decoded_once_and_mapped_by_everyone(tmp_path: Path) -> None:
    path = write(tmp_path / "d.npz", x_test=np.arange(12.0).reshape(4, 3), y_test=np.array([0, 1, 1, 0]))
    before = decoded()
    first, second = load(path, tmp_path / "home"), load(path, tmp_path / "home")
    assert decoded() == before + 4
    assert isinstance(second.x, np.memmap)
    assert np.array_equal(first.x, np.arange(12.0).reshape(4, 3))
    assert first.key == second.key


def test_key_is_the_content_not_the_path(tmp_path: Path) -> None:
    arrays = {"x_test": np.arange(6.0).reshape(3, 2), "y_test": np.array([0, 1, 2])}
    one = load(write(tmp_path / "a.npz", **arrays), tmp_path)
    same = load(write(tmp_path / "b.npz", **arrays), tmp_path)
    other = load(write(tmp_path / "c.npz", **(arrays | {"y_test": np.array([0, 1, 1])})), tmp_path)
    assert one.key == same.key != other.key


@given(limit=st.integers(1, 60), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_subset_keeps_proportions(tmp_path_factory, limit: int, seed: int) -> None:
    y = np.repeat([0, 1, 2], [30, 20, 10])
    chosen = stratified(y, limit, seed)
    assert len(chosen) == limit
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(y[chosen], minlength=3)
    assert (np.abs(counts - limit * np.array([30, 20, 10]) / 60) <= 1).all()
    assert np.array_equal(chosen, stratified(y, limit, seed))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.ones((2, 1)), "y_train": np.array([0, 1])}, "has no split 'test'. It has: train"),
        ({"x_test": np.ones((0, 1)), "y_test": np.array([], dtype=int)}, "is empty"),
        ({"x_test": np.ones((3, 1)), "y_test": np.array([0, 1])}, "has 3 examples and y_test"),
        ({"x_test": np.ones((2, 1)), "y_test": np.array([0.0, 1.0])}, "not class numbers"),
        ({"x_test": np.ones((2, 1)), "y_test": np.array([0, -1])}, "not class numbers"),
        ({"x_test": np.ones((2, 1)), "y_test": np.array([{}, {}])}, "not an .npz file of plain arrays"),
    ],
)
def test_faults_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(write(tmp_path / "d.npz", **arrays), tmp_path / "home")
    assert [path.name for path in (tmp_path / "home" / "data").iterdir()] == ["locks"]


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(str(tmp_path / "none.npz"), tmp_path)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"not an \.npz file"):
        load(str(tmp_path / "text.npz"), tmp_path)
