"""Opening data sets with the `datasets` library; no code of a data set is ever run, loading scripts are refused.

What the library prepares on the way to our arrays lies in a scratch folder that goes when they are built. Files of the
hub stay in the hub's own cache, as checkpoints do, where other programs find them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergecore.errors import InputError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

READERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".arrow": "arrow"}
"""Ending of a file (before ``.gz``) to the library's reader."""

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names of folders and files to the name of the split, as the library takes them."""

TABLES = ("parquet", "csv", "json", "arrow")
"""Readers for which one split can be read without the others, because no class numbers follow from the file names."""


def reader_of(file: Path) -> str | None:
    """Which of the library's readers a file is for; None for other files."""
    return READERS.get(Path(file.name.lower().removesuffix(".gz")).suffix)


def read_files(files: list[Path], path: str, scratch: Path, *, only: str | None = None) -> Mapping[str, Dataset]:
    """Rows of files of one kind; a column ``split`` says which split a row is in, else the file's name.

    Args:
        files: the files.
        path: what the user called them, for messages.
        scratch: for the library's temporary files.
        only: plays no part; all splits are read.

    Raises:
        InputError: they are of no known kind, of several, or damaged.
    """
    import datasets

    kinds = {reader_of(file) for file in files}
    reader = kinds.pop()
    if reader is None or kinds:
        known = ", ".join((".npz", *READERS))
        raise InputError(f"The data file {path!r} is of no known kind.", f"Known: {known}, and .gz of these.")
    options: dict[str, Any] = {"sep": "\t"} if ".tsv" in files[0].name.lower() else {}
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.name), []).append(str(file.resolve()))
    with _reading(path):
        splits = datasets.load_dataset(reader, data_files=by_split, cache_dir=str(scratch), **options)
        rows = next(iter(splits.values()))
        if len(splits) > 1 or "split" not in rows.column_names or rows.features["split"].dtype != "string":
            found: Mapping[str, Dataset] = splits
            return found
        told = np.array(rows["split"][:])
        return {name: rows.select(np.flatnonzero(told == name)) for name in dict.fromkeys(told.tolist())}


def read_saved(folder: Path, path: str, scratch: Path, *, only: str | None = None) -> Mapping[str, Dataset]:
    """What ``save_to_disk`` of the library wrote: one split or several; arguments as `read_files`."""
    import datasets

    with _reading(path):
        found = datasets.load_from_disk(str(folder))
    return found if isinstance(found, Mapping) else {str(found.split or "train"): found}


def read_pictures(
    folder: Path, pictures: list[Path], scratch: Path, *, only: str | None = None
) -> Mapping[str, Dataset]:
    """Pictures in class folders, numbered in alphabetical order.

    The class folders lie in split folders when every folder at the top has the name of a split.

    Args:
        folder: the top.
        pictures: the files, in order.
        scratch: plays no part.
        only: plays no part.
    """
    import datasets

    parts = [picture.relative_to(folder).parts for picture in pictures]
    in_splits = all(part[0].lower() in SPLIT_NAMES and len(part) > 2 for part in parts)
    class_of = [part[1 if in_splits else 0] for part in parts]
    names = sorted(set(class_of))
    number = {name: index for index, name in enumerate(names)}
    columns: dict[str, dict[str, list[Any]]] = {}
    for picture, part, name in zip(pictures, parts, class_of, strict=True):
        split = SPLIT_NAMES[part[0].lower()] if in_splits else "train"
        rows = columns.setdefault(split, {"image": [], "label": []})
        rows["image"].append(str(picture))
        rows["label"].append(number[name])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return {split: datasets.Dataset.from_dict(rows, features=features) for split, rows in columns.items()}


def read_repository(
    path: str, config: str | None, commit: str | None, scratch: Path, *, only: str | None = None
) -> Mapping[str, Dataset]:
    """A hub repository, or a local folder with the files of one; of a hub repository only what is needed is fetched.

    Args:
        path: hub id or folder.
        config: which configuration; may be left out where there is one.
        commit: of the hub repository; None for a folder.
        scratch: for what is prepared from its files.
        only: the split that is wanted; None: all.

    Raises:
        InputError: it cannot be fetched or read, has no such configuration, or wants to run code.
    """
    import datasets

    with _reading(path):
        cache = None if commit else str(scratch)
        builder = datasets.load_dataset_builder(path, config, revision=commit, cache_dir=cache)
        files = builder.config.data_files
        if files is None:  # without a network: as the library prepared it for someone before
            if commit and builder.hash != commit:
                raise InputError(f"The hub cannot be reached, and of {path!r} another revision was fetched before.")
            builder.download_and_prepare()
            return dict(builder.as_dataset())
        wanted = only if only in files else SPLIT_NAMES.get(only or "", "")
        if wanted in files and builder.name in TABLES:
            builder.config.data_files = type(files)({wanted: files[wanted]})
        place = scratch / (wanted or "all")
        builder.download_and_prepare(output_dir=str(place), verification_mode="no_checks")
        return dict(builder.as_dataset())


def _split_of(name: str) -> str:
    """The split that a file's name tells; "train" when it tells none, as the library has it."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Keep the library's bars and notices off the terminal, and say what it raises in one sentence."""
    import datasets

    bars, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs, it raises as well
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # errors of every kind, its dependencies' too
        reason = first_line(error.__cause__ or error)
        if "corresponds to no data" in reason or reason == StopIteration.__name__:
            reason = "a split of it is empty"
        raise InputError(f"The data set {path!r} cannot be read: {reason}.") from None
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
