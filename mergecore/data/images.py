"""Labelled images as every evaluation reads them: preprocessed bytes in memory-mapped arrays.

Shape suffixes: n images, b images of a batch, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergecore.data.arrays import ArrayWriter, read_npz
from mergecore.data.cache import build_once, count_decoded
from mergecore.data.columns import image_column, labels
from mergecore.data.preprocessors import Pipeline, Preprocessor, as_picture, find_preprocessor
from mergecore.data.sources import Source, find_source
from mergecore.data.subsets import stratified
from mergecore.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from mergecore.config import DatasetConfig
    from mergecore.evaluators.base import Context

FORMAT = 1
CHUNK = 64
"""Pictures that are decoded, by several threads, before they are written."""


@dataclass(frozen=True)
class Images:
    """Labelled images of one size.

    Attributes:
        x: [n, C, H, W] memory-mapped: uint8, or float32 where the data or the checkpoint's processor make floats.
        y: [n] int64 class numbers.
        mean: per channel, subtracted after scaling bytes to [0, 1]; empty: nothing.
        std: per channel, divided by.
        class_names: in the order of the class numbers, where the data set says them.
        key: content key of arrays, numbers and names.
    """

    x: np.ndarray
    y: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None
    key: str

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Images [b, C, H, W] as the network takes them, on ``device``."""
        return self.normalised(torch.from_numpy(np.array(self.x[start:stop])).to(device))

    def normalised(self, stored_bCHW: torch.Tensor) -> torch.Tensor:
        """Rows of ``x`` as the network takes them: float32, where they lie.

        One channel becomes as many as ``mean`` has.
        """
        images_bCHW = stored_bCHW.float().div_(255) if stored_bCHW.dtype == torch.uint8 else stored_bCHW.float()
        if self.mean:
            device = stored_bCHW.device
            mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.mean, self.std))
            ours = images_bCHW is not stored_bCHW and images_bCHW.shape[1] == len(self.mean)  # half the time in place
            images_bCHW = (images_bCHW.sub_(mean) if ours else images_bCHW.sub(mean)).div_(std)
        return images_bCHW


def load_images(
    dataset: DatasetConfig, context: Context, *, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()
) -> Images:
    """Open the images of one split, from the cache when they were preprocessed before.

    Pictures are preprocessed as the checkpoint says (`mergecore.data.preprocessors`). An .npz is taken as it is: bytes
    [n, H, W], [n, H, W, C] or [n, C, H, W], or floats [n, C, H, W].

    Args:
        dataset: where they are, which split, how many.
        context: home folder, and the checkpoint whose preprocessing is used.
        mean: per channel; given, it takes the place of the checkpoint's.
        std: per channel.

    Raises:
        InputError: data, columns, labels or preprocessing cannot be used.
    """
    source = find_source(dataset, context.home)
    preprocessor = find_preprocessor(context) if source.file is None else None
    columns = [dataset.columns.image, dataset.columns.label]
    stated = preprocessor.facts if preprocessor is not None else None
    facts = ["images", FORMAT, source.facts, dataset.split, dataset.limit, dataset.seed, columns, stated]

    def build(folder: Path) -> dict[str, Any]:
        if source.file is not None:
            return _from_npz(folder, source.file, dataset)
        return _from_table(folder, source, dataset, preprocessor)

    entry = build_once(context.home, facts, build)
    if not mean:
        mean, std = tuple(entry.meta["mean"]), tuple(entry.meta["std"])
    names = entry.meta["class_names"]
    key = hashlib.sha256(json.dumps([entry.key, mean, std]).encode()).hexdigest()
    return Images(entry.array("x"), entry.array("y"), mean, std, None if names is None else tuple(names), key)


def _from_npz(folder: Path, file: Path, dataset: DatasetConfig) -> dict[str, Any]:
    x, y, names = read_npz(file, dataset.path, dataset.split)
    chosen = stratified(y, dataset.limit, dataset.seed)
    np.save(folder / "y.npy", y[chosen])
    x_nCHW = _channels_first(x, dataset.path)
    with ArrayWriter(folder / "x.npy", np.uint8 if x.dtype == np.uint8 else np.float32, x_nCHW.shape[1:]) as writer:
        for start in range(0, len(chosen), CHUNK):
            writer.append(x_nCHW[chosen[start : start + CHUNK]])
    count_decoded(len(chosen))
    return {"mean": [], "std": [], "class_names": names}


def _channels_first(x: np.ndarray, path: str) -> np.ndarray:
    """[n, C, H, W] as a view."""
    if x.dtype == np.uint8 and x.ndim == 3:
        return x[:, None]
    if x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] in (1, 3):
        return x.transpose(0, 3, 1, 2)
    if x.ndim == 4 and (x.dtype == np.uint8 or x.dtype.kind == "f"):
        return x
    raise InputError(f"The images of {path!r} have the shape {list(x.shape)}, not [n, C, H, W].")


def _from_table(
    folder: Path, source: Source, dataset: DatasetConfig, preprocessor: Preprocessor | None
) -> dict[str, Any]:
    pipeline = preprocessor.load() if preprocessor is not None else Pipeline(_as_it_is, (), ())
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        table = source.open(dataset.split, Path(scratch))
        y, names = labels(table, dataset)
        chosen = stratified(y, dataset.limit, dataset.seed)
        np.save(folder / "y.npy", y[chosen])
        chunks = _preprocessed(table.rows.select(chosen), image_column(table.rows, dataset), pipeline, dataset.path)
        first = next(chunks)
        with ArrayWriter(folder / "x.npy", first.dtype, first.shape[1:]) as writer:
            for chunk in itertools.chain([first], chunks):
                if chunk.shape[1:] != first.shape[1:]:
                    raise _sizes_differ(dataset.path)
                writer.append(chunk)
    return {"mean": pipeline.mean, "std": pipeline.std, "class_names": names}


def _preprocessed(rows: Dataset, column: str, pipeline: Pipeline, path: str) -> Iterator[np.ndarray]:
    """[k, C, H, W] of at most ``CHUNK`` pictures at a time."""
    import datasets
    from PIL.Image import DecompressionBombError

    feature = datasets.Image()
    rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def preprocess(stored: Any) -> np.ndarray:
        if stored is None:
            raise InputError(f"The column {column!r} of {path!r} has rows without a picture.")
        try:
            return pipeline.to_array(feature.decode_example(stored))
        except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
            name = stored["path"] or "a picture"
            raise InputError(f"The picture {name!r} of {path!r} cannot be decoded: {error}.") from None

    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        for start in range(0, len(rows), CHUNK):
            chunk = list(pool.map(preprocess, rows[start : start + CHUNK][column]))
            if any(pixels.shape != chunk[0].shape for pixels in chunk):
                raise _sizes_differ(path)
            count_decoded(len(chunk))
            yield np.stack(chunk)


def _as_it_is(image: Any) -> np.ndarray:
    """A picture in its own size, grey or in three channels."""
    pixels = np.asarray(as_picture(image, 1 if image.mode in ("1", "L") else 3))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _sizes_differ(path: str) -> InputError:
    return InputError(
        f"The images of {path!r} differ in size or channels, and the checkpoint states no preprocessing.",
        "Put the preprocessor_config.json of the model into its folder.",
    )
