"""Arrays of .npz files become images as they are; .npy files written row by row are NumPy's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore.data.arrays import ArrayWriter
from mergecore.data.cache import decoded
from mergecore.data.images import Images, load_images
from mergecore.data.subsets import stratified, uniform
from mergecore.errors import InputError
from mergecore.evaluators.base import Context
from tests.mergecore.data.conftest import dataset


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def floats(n: int = 4) -> dict[str, np.ndarray]:
    return {"x_test": np.arange(n * 6.0).reshape(n, 1, 2, 3), "y_test": np.arange(n) % 2}


def load(path: Path | str, context: Context, **keys: object) -> Images:
    return load_images(dataset(path, **keys), context)


def test_decoded_once_and_mapped_by_everyone(tmp_path: Path, context: Context) -> None:
    path = write(tmp_path / "d.npz", **floats())
    before = decoded()
    first, second = load(path, context), load(path, context)
    assert decoded() == before + 4
    assert isinstance(second.x, np.memmap)
    assert np.array_equal(first.x, floats()["x_test"])
    assert first.x.dtype == np.float32
    assert first.y.tolist() == [0, 1, 0, 1]
    assert first.key == second.key


def test_key_is_the_content_not_the_path(tmp_path: Path, context: Context) -> None:
    one = load(write(tmp_path / "a.npz", **floats()), context)
    same = load(write(tmp_path / "b.npz", **floats()), context)
    other = load(write(tmp_path / "c.npz", **(floats() | {"y_test": np.array([0, 1, 1, 1])})), context)
    assert one.key == same.key != other.key


def test_a_changed_file_is_read_again(tmp_path: Path, context: Context) -> None:
    path = write(tmp_path / "d.npz", **floats())
    before = load(path, context)
    write(path, **(floats() | {"y_test": np.array([1, 1, 1, 1])}))
    assert load(path, context).y.tolist() == [1, 1, 1, 1]
    assert before.y.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("layout", ["nHW", "nHWC", "nCHW"])
def test_bytes_in_any_layout_become_channels_first(tmp_path: Path, context: Context, layout: str) -> None:
    channels = 1 if layout == "nHW" else 3
    x_nCHW = np.random.default_rng(0).integers(0, 256, (5, channels, 8, 6), dtype=np.uint8)
    stored = {"nHW": x_nCHW[:, 0], "nHWC": x_nCHW.transpose(0, 2, 3, 1), "nCHW": x_nCHW}[layout]
    path = write(tmp_path / "d.npz", x_test=stored, y_test=np.zeros(5, dtype=int), classes=np.array(["a", "b"]))
    found = load_images(dataset(path), context, mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 2.0))
    assert np.array_equal(found.x, x_nCHW)
    assert found.x.dtype == np.uint8
    assert found.class_names == ("a", "b")
    expected = (x_nCHW[1:4] / 255 - np.reshape([0.5, 0.25, 0.0], (3, 1, 1))) / np.reshape([1.0, 0.5, 2.0], (3, 1, 1))
    batch = found.batch(1, 4)
    assert batch.shape == (3, 3, 8, 6)  # one channel becomes three
    assert np.allclose(batch.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert load(path, context).key != found.key


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_normalising_leaves_what_is_stored(tmp_path: Path, context: Context, dtype: str) -> None:
    path = write(tmp_path / "d.npz", x_test=np.ones((2, 3, 4, 4), dtype), y_test=np.zeros(2, dtype=int))
    found = load_images(dataset(path), context, mean=(0.5,) * 3, std=(0.25,) * 3)
    resident = torch.from_numpy(np.array(found.x))
    first, second = found.normalised(resident), found.normalised(resident)
    assert torch.equal(first, second)
    assert (resident == 1).all()


def test_other_shapes_are_refused(tmp_path: Path, context: Context) -> None:
    path = write(tmp_path / "d.npz", x_test=np.ones((2, 3)), y_test=np.array([0, 1]))
    with pytest.raises(InputError, match=r"have the shape \[2, 3\], not \[n, C, H, W\]"):
        load(path, context)


@given(limit=st.integers(1, 60), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_subset_keeps_proportions(limit: int, seed: int) -> None:
    y = np.repeat([0, 1, 2], [30, 20, 10])
    chosen = stratified(y, limit, seed)
    assert len(chosen) == limit
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(y[chosen], minlength=3)
    assert (np.abs(counts - limit * np.array([30, 20, 10]) / 60) <= 1).all()
    assert np.array_equal(chosen, stratified(y, limit, seed))


def test_unlabelled_subset_keeps_the_order() -> None:
    chosen = uniform(50, 20, 3)
    assert len(chosen) == 20
    assert (np.diff(chosen) > 0).all()
    assert not np.array_equal(chosen, uniform(50, 20, 4))
    assert uniform(5, 9, 0).tolist() == uniform(5, None, 0).tolist() == [0, 1, 2, 3, 4]


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
def test_faults_are_named(tmp_path: Path, context: Context, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(write(tmp_path / "d.npz", **arrays), context)
    assert [path.name for path in (context.home / "data").iterdir()] == ["locks"]


def test_missing_and_unreadable_files(tmp_path: Path, context: Context) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "none.npz", context)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"not an \.npz file"):
        load(tmp_path / "text.npz", context)


@given(
    blocks=st.lists(st.integers(0, 7), max_size=4),
    row=st.sampled_from([(), (3,), (2, 1, 3)]),
    dtype=st.sampled_from(["uint8", "int32", "float32"]),
)
@settings(max_examples=20, deadline=None)
def test_rows_are_written_as_numpy_writes_the_whole(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[int], row: tuple[int, ...], dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    whole = np.random.default_rng(0).integers(0, 100, (sum(blocks), *row)).astype(dtype)
    with ArrayWriter(folder / "x.npy", dtype, row) as writer:
        for block in np.split(whole, np.cumsum(blocks)[:-1]) if blocks else []:
            writer.append(block)
    np.save(folder / "twin.npy", whole)
    assert np.array_equal(np.load(folder / "x.npy"), np.load(folder / "twin.npy"))
    assert (folder / "x.npy").stat().st_size == (folder / "twin.npy").stat().st_size
