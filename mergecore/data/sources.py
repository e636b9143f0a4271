"""Where examples come from: files, folders and hub repositories, opened with the `datasets` library.

Nothing here runs code of a data set: loading scripts and pickled files are refused. What identifies a source is known
before any library is imported, so that a run whose arrays are cached opens nothing: paths, sizes and modification times
of local files (to digest a large folder would take longer than to open it), the commit of a hub repository.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergecore.errors import InputError
from mergecore.registry import Registry

if TYPE_CHECKING:
    from datasets import Dataset

    from mergecore.config import DatasetConfig

DATA_SOURCES = Registry("data source", {"digits": "mergecore.digits:data_file"})
"""Prefixes of the form ``digits:upright``; each entry is ``(rest, home) -> path`` of an .npz file."""

READERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".arrow": "arrow"}
"""Ending of a file (without ``.gz``) to the library's reader."""

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names of split folders and files to the split's name, as the library takes them."""

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

Splits = Mapping[str, "Dataset"]


@dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
        rows: in their order.
        splits: all splits by name, this one among them.
        class_names: in the order of the class numbers, where a file beside the data says them.
    """

    rows: Dataset
    splits: Splits
    class_names: tuple[str, ...] | None


@dataclass(frozen=True)
class Source:
    """A data set that has been found, but not opened.

    Attributes:
        path: what the user wrote, for messages.
        facts: identity of its content, as plain JSON.
        read: every split by name; its argument is a folder for the library's temporary files.
        file: the .npz file, when that is what it is; then there is nothing to read.
        class_names: as in `Table`.
    """

    path: str
    facts: Any
    read: Callable[[Path], Splits] | None = None
    file: Path | None = None
    class_names: tuple[str, ...] | None = None

    def open(self, split: str, scratch: Path) -> Table:
        """The rows of a split; ``scratch`` must last as long as they are read.

        Raises:
            InputError: it cannot be read, has no such split, or no rows in it.
        """
        if self.read is None:
            raise InputError(f"The data set {self.path!r} holds arrays, no table of texts or pictures.")
        with quiet_datasets():
            splits = self.read(scratch)
        name = split if split in splits else SPLIT_NAMES.get(split, split)
        if name not in splits:
            raise InputError(f"The data set {self.path!r} has no split {split!r}.", f"It has: {', '.join(splits)}.")
        if not len(splits[name]):
            raise InputError(f"The split {split!r} of {self.path!r} is empty.")
        return Table(splits[name], splits, self.class_names)


def locate_data(path: str, home: Path) -> Path:
    """The local file behind ``path``; raises ``InputError`` when there is none."""
    prefix, separator, rest = path.partition(":")
    if separator and prefix in DATA_SOURCES:
        return Path(DATA_SOURCES.get(prefix)(rest, home))
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"The data file {path!r} does not exist.")
    return file


def find_source(dataset: DatasetConfig, home: Path) -> Source:
    """What ``dataset.path`` means: a registered prefix, a local file or folder, files by pattern, or a hub id.

    Raises:
        InputError: there is nothing, or nothing that can be read.
    """
    path = dataset.path
    prefix, separator, _ = path.partition(":")
    local = Path(path).expanduser()
    if (separator and prefix in DATA_SOURCES) or local.suffix == ".npz":
        file = locate_data(path, home)
        return Source(path, file_facts(file), file=file)
    if local.is_dir():
        return _folder(local, dataset)
    if local.is_file():
        return _files([local], dataset)
    if any(character in path for character in "*?["):
        parent = Path(local.anchor or ".")
        files = sorted(file for file in parent.glob(str(local.relative_to(parent))) if file.is_file())
        if files:
            return _files(files, dataset)
    elif HUB_ID.fullmatch(path) and _reader(local) is None and not path.startswith("."):
        return _hub(dataset)
    raise InputError(f"The data file {path!r} does not exist.")


def file_facts(*files: Path) -> list[list[Any]]:
    """Identity of local files: path, size and time of the last change."""
    stats = [(file.resolve(), file.stat()) for file in files]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep progress bars and notices of the library off the terminal."""
    import datasets

    bars = not datasets.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _reader(file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz")
    return READERS.get(Path(name).suffix)


def _split_of(name: str) -> str:
    """The split that a file's name tells; "train" when it tells none, as the library has it."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")


def _files(files: list[Path], dataset: DatasetConfig) -> Source:
    """Rows of files of one kind; the splits are told by a column ``split``, or by the files' names."""
    readers = {_reader(file) for file in files}
    reader = readers.pop()
    if reader is None or readers:
        listed = ", ".join((".npz", *READERS))
        raise InputError(f"The data file {dataset.path!r} is of no known kind.", f"Known: {listed}, and .gz of these.")
    options = {"sep": "\t"} if files[0].name.lower().removesuffix(".gz").endswith(".tsv") else {}

    def open_files(scratch: Path) -> Splits:
        import datasets

        by_split: dict[str, list[str]] = {}
        for file in files:
            by_split.setdefault(_split_of(file.name), []).append(str(file.resolve()))
        with _faults(dataset.path):
            splits = datasets.load_dataset(reader, data_files=by_split, cache_dir=str(scratch), **options)
        return _by_column(splits)

    classes = files[0].parent / "classes.json"
    names = None
    if classes.is_file():
        try:
            names = tuple(str(name) for name in json.loads(classes.read_text("utf-8")))
        except (ValueError, TypeError):
            raise InputError(f"{str(classes)!r} is not a JSON list of class names.") from None
    facts = ["files", file_facts(*files), names]
    return Source(dataset.path, facts, open_files, class_names=names)


def _by_column(splits: Splits) -> Splits:
    """Rows of one file told apart by its column ``split``, if it has one of strings."""
    import numpy as np

    (first, *others) = splits.values()
    if others or "split" not in first.column_names or first.features["split"].dtype not in ("string", "large_string"):
        return splits
    told = np.array(first["split"][:])
    return {name: first.select(np.flatnonzero(told == name)) for name in dict.fromkeys(told.tolist())}


def _folder(folder: Path, dataset: DatasetConfig) -> Source:
    """What save_to_disk wrote, pictures in class folders, or a repository in the hub's format."""
    files = sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)
    facts = [[str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    place = str(folder.resolve())
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        opener: Callable[[Path], Splits] = functools.partial(_open_saved, folder, dataset.path)
    elif _is_picture_folder(folder, files):
        opener = functools.partial(_open_pictures, folder, files, dataset.path)
    else:

        def opener(scratch: Path) -> Splits:
            import datasets

            with _faults(dataset.path):
                found: Splits = datasets.load_dataset(place, dataset.config, cache_dir=str(scratch))
            return found

    return Source(dataset.path, ["folder", place, facts, dataset.config], opener)


def _open_saved(folder: Path, path: str, scratch: Path) -> Splits:
    import datasets

    with _faults(path):
        found = datasets.load_from_disk(str(folder))
    return found if isinstance(found, Mapping) else {str(found.split or "train"): found}


def _is_picture_folder(folder: Path, files: list[Path]) -> bool:
    """Whether there are pictures in folders, and nothing that describes them in another way."""
    if any(_reader(file) or file.suffix in (".tar", ".zip", ".py") for file in files):
        return False
    return any(file.suffix.lower() in PICTURES and file.parent != folder for file in files)


def _open_pictures(folder: Path, files: list[Path], path: str, scratch: Path) -> Splits:
    """Class folders, in split folders when every folder at the top has a split's name; classes in order of name."""
    import datasets

    pictures = [file for file in files if file.suffix.lower() in PICTURES and file.parent != folder]
    tops = {file.relative_to(folder).parts[0] for file in pictures}
    in_splits = all(top.lower() in SPLIT_NAMES for top in tops) and all(
        len(file.relative_to(folder).parts) > 2 for file in pictures
    )
    place = 1 if in_splits else 0
    names = sorted({file.relative_to(folder).parts[place] for file in pictures})
    splits: dict[str, dict[str, list[Any]]] = {}
    for file in pictures:
        parts = file.relative_to(folder).parts
        split = SPLIT_NAMES[parts[0].lower()] if in_splits else "train"
        rows = splits.setdefault(split, {"image": [], "label": []})
        rows["image"].append(str(file))
        rows["label"].append(names.index(parts[place]))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return {split: datasets.Dataset.from_dict(rows, features=features) for split, rows in splits.items()}


def _hub(dataset: DatasetConfig) -> Source:
    commit = _commit(dataset.path, dataset.revision)

    def open_hub(scratch: Path) -> Splits:
        import datasets

        # the library's own cache: shared with other programs of the user, and usable without a network
        with _faults(dataset.path):
            found: Splits = datasets.load_dataset(dataset.path, dataset.config, revision=commit)
        return found

    return Source(dataset.path, ["hub", dataset.path, dataset.config, commit], open_hub)


@functools.cache
def _commit(name: str, revision: str | None) -> str:
    """The commit that a revision means now; one answer for the life of the process."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:
        raise InputError(f"The data set {name!r} is no local path and was not found on the hub: {error}") from None


@contextmanager
def _faults(path: str) -> Iterator[None]:
    """What the library raises about a data set, as one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # it raises errors of every kind, also its dependencies'
        reason = str(error.__cause__ or error).strip() or type(error).__name__
        raise InputError(f"The data set {path!r} cannot be read: {reason.splitlines()[0].rstrip('.')}.") from None
