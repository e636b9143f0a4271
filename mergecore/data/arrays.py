"""Arrays in and out: the user's .npz files, and .npy files that are written row by row."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mergecore.errors import InputError


def read_npz(file: Path, path: str, split: str) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Inputs [n, ...], int64 class numbers [n] of one split, and the names in ``classes`` where there are any.

    Args:
        file: the archive.
        path: what the user called it, for messages.
        split: which split.

    Raises:
        InputError: no such split, not an .npz of plain arrays, no examples, unequal lengths, bad labels.
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


class ArrayWriter:
    """Writes a .npy file row by row, so that the whole array is never in memory; a context manager.

    Args:
        path: the file.
        dtype: of the array.
        row: shape of one row; () for a flat array.
    """

    def __init__(self, path: Path, dtype: Any, row: tuple[int, ...] = ()) -> None:
        self._file = path.open("wb")
        self._dtype, self._row = np.dtype(dtype), row
        self.rows = 0
        self._header()

    def append(self, rows: np.ndarray) -> None:
        """Add rows [k, *row]."""
        if rows.shape[1:] != self._row:
            raise ValueError(f"rows of the shape {list(rows.shape[1:])} in an array of {list(self._row)}")
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self.rows += len(rows)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        # NumPy pads the header so that it keeps its length while the first axis grows
        shape = (self.rows, *self._row)
        facts = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, facts)
