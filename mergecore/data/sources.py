"""Where examples come from: files, folders and hub repositories.

A source is found before any library is imported, so that a run whose arrays are cached opens nothing. What identifies
it are paths, sizes and modification times of local files (to digest a large folder takes longer than to open it), or
the commit of a hub repository. The arrays that come out have a content key of their own.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mergecore.data import readers
from mergecore.errors import InputError, first_line
from mergecore.registry import Registry

if TYPE_CHECKING:
    from datasets import Dataset

    from mergecore.config import DatasetConfig

DATA_SOURCES = Registry("data source", {"digits": "mergecore.digits:data_file"})
"""Prefixes of the form ``digits:upright``; each entry is ``(rest, home) -> path`` of an .npz file."""

CLASSES = "classes.json"
"""A JSON list of class names that may lie beside data files."""

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Read(Protocol):
    """Opens a source: every split by name, or the wanted one and perhaps others, for as long as ``scratch`` lasts."""

    def __call__(self, scratch: Path, *, only: str | None) -> Mapping[str, Dataset]: ...


@dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
        rows: in their order.
        every_split: reads all splits of the data set.
        class_names: in the order of the class numbers, where a file beside the data says them.
    """

    rows: Dataset
    every_split: Callable[[], Mapping[str, Dataset]]
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source:
    """A data set that has been found, but not opened.

    Attributes:
        path: what the user wrote, for messages.
        facts: identity of its content, as plain JSON.
        read: opens it; None when it is an .npz file.
        file: the .npz file, when that is what it is.
        class_names: as in `Table`.
    """

    path: str
    facts: Any
    read: Read | None = None
    file: Path | None = None
    class_names: tuple[str, ...] | None = None

    def open(self, split: str, scratch: Path) -> Table:
        """The rows of a split.

        Args:
            split: its name, or another that means the same ("val" for "validation").
            scratch: a folder for the library's temporary files, which must last as long as rows are read.

        Raises:
            InputError: it cannot be read, has no such split, or no rows in it.
        """
        if self.read is None:
            raise InputError(f"The data set {self.path!r} holds arrays, not texts.")
        splits = self.read(scratch, only=split)
        name = split if split in splits else readers.SPLIT_NAMES.get(split, split)
        if name not in splits:
            raise InputError(f"The data set {self.path!r} has no split {split!r}.", f"It has: {', '.join(splits)}.")
        if not len(splits[name]):
            raise InputError(f"The split {split!r} of {self.path!r} is empty.")
        return Table(splits[name], functools.partial(self.read, scratch, only=None), self.class_names)


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
    path, local = dataset.path, Path(dataset.path).expanduser()
    prefix, separator, _ = path.partition(":")
    if (separator and prefix in DATA_SOURCES) or local.suffix == ".npz":
        file = locate_data(path, home)
        return Source(path, _stamps([file]), file=file)
    if local.is_dir():
        return _folder(local, dataset)
    if local.is_file():
        return _files([local], dataset)
    if any(character in path for character in "*?["):
        files = sorted(Path(local.anchor).glob(str(local.relative_to(local.anchor))))
        if files:
            return _files(files, dataset)
    elif HUB_ID.fullmatch(path) and readers.reader_of(local) is None:
        commit = _commit(path, dataset.revision)
        read: Read = functools.partial(readers.read_repository, path, dataset.config, commit)
        return Source(path, ["hub", path, dataset.config, commit], read)
    raise InputError(f"The data file {path!r} does not exist.")


def _files(files: list[Path], dataset: DatasetConfig) -> Source:
    names = _class_names(files[0].parent)
    read = functools.partial(readers.read_files, files, dataset.path)
    return Source(dataset.path, ["files", _stamps(files), names], read, class_names=names)


def _folder(folder: Path, dataset: DatasetConfig) -> Source:
    """What save_to_disk wrote, tables beside a classes.json, pictures in class folders, or a hub repository's files."""
    files = sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)
    tables = [file for file in files if file.name != CLASSES and readers.reader_of(file) is not None]
    facts = ["folder", _stamps(files), dataset.config]
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return Source(dataset.path, facts, functools.partial(readers.read_saved, folder, dataset.path))
    if (folder / CLASSES).is_file() and tables:
        return _files(tables, dataset)
    pictures = [file for file in files if file.suffix.lower() in readers.PICTURES and file.parent != folder]
    if pictures and not tables and not any(file.suffix in (".zip", ".tar", ".py") for file in files):
        return Source(dataset.path, facts, functools.partial(readers.read_pictures, folder, pictures))
    return Source(dataset.path, facts, functools.partial(readers.read_repository, str(folder), dataset.config, None))


def _stamps(files: list[Path]) -> list[list[Any]]:
    stats = [(file.resolve(), file.stat()) for file in files]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def _class_names(folder: Path) -> tuple[str, ...] | None:
    file = folder / CLASSES
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{str(file)!r} is not a JSON list of class names.")
    return tuple(content)


@functools.cache
def _commit(name: str, revision: str | None) -> str:
    """The commit that a revision means now, or meant when the hub could last be reached; one answer a process."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, errors, hf_hub_download

    try:
        try:
            # the library's cache remembers the answer for the time without a network
            return Path(hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)).parent.name
        except errors.LocalEntryNotFoundError:
            raise
        except errors.EntryNotFoundError:
            return str(HfApi().dataset_info(name, revision=revision).sha)
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except errors.GatedRepoError:
        reason = "its owner has not given you access"
    except errors.RepositoryNotFoundError:
        reason = "there is none of that name, or it is private"
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = first_line(error)
    raise InputError(f"{name!r} is no local path and could not be fetched from the hub: {reason}.")
