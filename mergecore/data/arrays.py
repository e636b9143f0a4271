"""Labelled arrays of .npz files."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergecore.data.cache import build_once, count_decoded
from mergecore.data.sources import file_facts, locate_data
from mergecore.data.subsets import stratified
from mergecore.errors import InputError

FORMAT = 2


@dataclass(frozen=True)
class LabelledArrays:
    """Examples of one task.

    Attributes:
        x: [n, ...] inputs, memory-mapped.
        y: [n] integer labels, memory-mapped.
        key: content key.
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

    def build(folder: Path) -> dict[str, Any]:
        x, y, _ = read_npz(file, path, split)
        chosen = stratified(y, limit, seed)
        np.save(folder / "x.npy", x[chosen])
        np.save(folder / "y.npy", y[chosen])
        count_decoded(len(chosen))
        return {}

    entry = build_once(home, ["arrays", FORMAT, file_facts(file), split, limit, seed], build)
    return LabelledArrays(entry.array("x"), entry.array("y"), entry.key)


def read_npz(file: Path, path: str, split: str) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Inputs [n, ...], int64 class numbers [n] of one split, and the names in ``classes`` where there are any.

    Args:
        file: the archive.
        path: what the user called it, for messages.
        split: which split.

    Raises:
        InputError: as `load_arrays`.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            splits = sorted(name.removeprefix("x_") for name in archive.files if name.startswith("x_"))
            if f"x_{split}" not in archive.files or f"y_{split}" not in archive.files:
                raise InputError(f"The data file {path!r} has no split {split!r}.", f"It has: {', '.join(splits)}.")
            x, y = archive[f"x_{split}"], archive[f"y_{split}"]
            names = archive["classes"] if "classes" in archive.files else np.array([])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError):
        raise InputError(f"The data file {path!r} is not an .npz file of plain arrays.") from None
    if len(y) == 0:
        raise InputError(f"The split {split!r} of {path!r} is empty.")
    if len(x) != len(y) or y.ndim != 1:
        raise InputError(f"In {path!r} x_{split} has {len(x)} examples and y_{split} the shape {list(y.shape)}.")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise InputError(f"The labels y_{split} of {path!r} are not class numbers from 0.")
    return x, y.astype(np.int64), names.tolist() if names.ndim == 1 and names.dtype.kind == "U" else None
