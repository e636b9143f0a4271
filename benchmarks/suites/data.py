"""The suites' data and its splits: validation is carved out of train, test takes no part in any choice."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import numpy as np

from mergecore.data.subsets import stratified
from mergecore.files import atomic_write

ROOT = Path(__file__).parents[2]
VALIDATION_SHARE = 0.2
IMAGE = 32
"""Pixels; smaller pictures are padded."""


def data_folder() -> Path | None:
    """MERGECORE_DATA, or where the data lies beside the project; None when there is none."""
    folder = Path(os.environ.get("MERGECORE_DATA") or ROOT.parent / "shared" / "data")
    return folder if (folder / "vision").is_dir() else None


def carve(labels: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the validation examples, every class in proportion."""
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels))
    counts = np.bincount(labels)
    stratify = labels if counts[counts > 0].min() > 1 else None
    train, validation = train_test_split(everything, test_size=VALIDATION_SHARE, stratify=stratify, random_state=seed)
    return np.sort(train), np.sort(validation)


def images(name: str) -> dict[str, np.ndarray]:
    """``x_<split>`` [n, 32, 32, 3] bytes and ``y_<split>`` of one set; grey is repeated, edges are zeros."""
    folder = data_folder()
    assert folder is not None
    with np.load(folder / "vision" / name / f"{name}.npz", allow_pickle=False) as archive:
        found = {key: archive[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    train, validation = carve(found["y_train"])
    splits = {
        "train": (found["x_train"][train], found["y_train"][train]),
        "validation": (found["x_train"][validation], found["y_train"][validation]),
        "test": (found["x_test"], found["y_test"]),
    }
    return {f"x_{split}": _square(x) for split, (x, _) in splits.items()} | {
        f"y_{split}": y for split, (_, y) in splits.items()
    }


def _square(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    edge = (IMAGE - images.shape[1]) // 2
    return np.pad(images, ((0, 0), (edge, edge), (edge, edge), (0, 0)))


def write_images(name: str, folder: Path, *, test: int | None = None) -> Path:
    """The set as an .npz file in ``folder``, unless it is there; of the split "test" a stratified draw of ``test``."""
    file = folder / f"{name}.npz"
    if not file.is_file():
        arrays = images(name)
        kept = stratified(arrays["y_test"], test, seed=0)
        arrays |= {"x_test": arrays["x_test"][kept], "y_test": arrays["y_test"][kept]}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        atomic_write(file, buffer.getvalue())
    return file


def rows(kind: str, name: str) -> list[dict[str, object]]:
    """Rows of a text or language-model set, with the split "validation" carved out of "train"."""
    folder = data_folder()
    assert folder is not None
    with gzip.open(folder / kind / name / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        found: list[dict[str, object]] = [json.loads(line) for line in lines]
    train = [row for row in found if row["split"] == "train"]
    _, validation = carve(np.array([row["label"] for row in train]))
    for index in validation:
        train[index]["split"] = "validation"
    return found


def write_rows(kind: str, name: str, folder: Path, *, test: int | None = None) -> Path:
    """The set as a .jsonl file in ``folder``, unless it is there; of the split "test" a stratified draw of ``test``."""
    file = folder / f"{name}.jsonl"
    if not file.is_file():
        found = rows(kind, name)
        tested = [row for row in found if row["split"] == "test"]
        kept = stratified(np.array([row["label"] for row in tested]), test, seed=0)
        written = [row for row in found if row["split"] != "test"] + [tested[index] for index in kept]
        atomic_write(file, "".join(json.dumps(row) + "\n" for row in written))
    return file
