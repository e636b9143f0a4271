"""Labelled examples, decoded once into memory-mapped arrays that all workers and runs share."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mergecore.errors import InputError
from mergecore.files import atomic_folder, file_digest
from mergecore.registry import Registry

FORMAT = 1

DATA_SOURCES = Registry("data source", {"digits": "mergecore.digits:data_file"})
"""Prefixes of the form ``digits:upright``; each entry is ``(rest, home) -> path`` of an .npz file."""


@dataclass(frozen=True)
class LabelledArrays:
    """Examples of one task.

    Attributes:
        x: [n, ...] inputs, memory-mapped.
        y: [n] integer labels, memory-mapped.
        key: content key: file, split and subset.
    """

    x: np.ndarray
    y: np.ndarray
    key: str

    def __len__(self) -> int:
        return len(self.y)


def load_arrays(path: str, *, split: str, limit: int | None, seed: int, home: Path) -> LabelledArrays:
    """Open one split of an .npz file, from the cache when it was decoded before.

    Args:
        path: an .npz file with ``x_<split>`` and ``y_<split>``, or a registered prefix (``digits:upright``).
        split: which split.
        limit: at most so many examples, drawn by class in proportion; None takes all.
        seed: seed of that draw.
        home: MERGECORE_HOME; the cache lives in ``home/data``.

    Raises:
        InputError: no such file or split, not an .npz of plain arrays, no examples, unequal lengths, bad labels.
    """
    file = locate_data(path, home)
    stat = file.stat()
    facts = [FORMAT, str(file.resolve()), stat.st_size, stat.st_mtime_ns, split, limit, seed]
    folder = home / "data" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if not folder.is_dir():
        x, y = _decode(file, path, split)
        chosen = _subset(y, limit, seed)
        with atomic_folder(folder) as temporary:
            np.save(temporary / "x.npy", x[chosen])
            np.save(temporary / "y.npy", y[chosen])
            digests = [file_digest(temporary / "x.npy"), file_digest(temporary / "y.npy")]
            (temporary / "key").write_text(hashlib.sha256("".join(digests).encode()).hexdigest())
    x = np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False)
    y = np.load(folder / "y.npy", mmap_mode="r", allow_pickle=False)
    return LabelledArrays(x, y, (folder / "key").read_text())


def locate_data(path: str, home: Path) -> Path:
    """The local file behind ``path``; raises ``InputError`` when there is none."""
    prefix, separator, rest = path.partition(":")
    if separator and prefix in DATA_SOURCES:
        return DATA_SOURCES.get(prefix)(rest, home)
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"The data file {path!r} does not exist.")
    return file


def _decode(file: Path, path: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            splits = sorted(name.removeprefix("x_") for name in archive.files if name.startswith("x_"))
            if f"x_{split}" not in archive.files or f"y_{split}" not in archive.files:
                raise InputError(f"The data file {path!r} has no split {split!r}.", f"It has: {', '.join(splits)}.")
            x, y = archive[f"x_{split}"], archive[f"y_{split}"]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError):
        raise InputError(f"The data file {path!r} is not an .npz file of plain arrays.") from None
    if len(y) == 0:
        raise InputError(f"The split {split!r} of {path!r} is empty.")
    if len(x) != len(y) or y.ndim != 1:
        raise InputError(f"In {path!r} x_{split} has {len(x)} examples and y_{split} the shape {list(y.shape)}.")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise InputError(f"The labels y_{split} of {path!r} are not class numbers from 0.")
    return x, y.astype(np.int64)


def _subset(y: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Indices of a draw that keeps the classes' proportions, in file order."""
    if limit is None or limit >= len(y):
        return np.arange(len(y))
    order = np.random.default_rng(seed).permutation(len(y))
    # within each class the k-th drawn example has rank k / (class size): the smallest ranks are a stratified draw
    classes = y[order]
    rank = np.empty(len(y))
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(rank, kind="stable")[:limit]])
