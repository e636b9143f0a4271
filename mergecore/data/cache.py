"""Folders of arrays that are built once, shared by every process and run of a home folder, and bounded in size.

An entry is a folder under ``home/data`` named by the facts that decide its content. A builder holds the entry's lock,
so of several processes that want the same entry exactly one builds it and the others wait; what a killed builder left
behind is removed by the next one. A process that uses an entry holds a lease on it (a shared file lock, which ends
with the process however it ends), and entries on lease are never evicted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from mergecore.errors import InputError
from mergecore.files import file_digest, flush_folder

LIMIT_GB = 50.0
"""Size above which entries that nobody uses are evicted, the longest unused first."""

LIMIT_VARIABLE = "MERGECORE_DATA_CACHE_GB"
FACTS, META, CONTENT, LEASE, UNFINISHED = "facts.json", "meta.json", "content", "lease", ".writing-"

_leases: dict[Path, int] = {}  # folder -> open file descriptor, for as long as this process lives
_decoded = 0


def decoded() -> int:
    """How many examples this process has decoded or tokenised so far."""
    return _decoded


def count_decoded(examples: int) -> None:
    """Add to `decoded`; every builder calls it."""
    global _decoded
    _decoded += examples


class Entry:
    """An entry that is complete and on lease to this process.

    Attributes:
        folder: where its arrays lie.
        meta: what its builder returned.
        key: content key: a digest of the arrays and of ``meta``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / META).read_text("utf-8"))
        self.key = (folder / CONTENT).read_text("utf-8")

    def array(self, name: str) -> np.ndarray:
        """The array ``name``, memory-mapped and read-only."""
        array: np.ndarray = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return array


def build_once(home: Path, facts: Any, build: Callable[[Path], dict[str, Any]]) -> Entry:
    """The entry that ``facts`` decide, built now if no process has built it before.

    Args:
        home: MERGECORE_HOME.
        facts: plain JSON: source, subset, preprocessing, versions; equal facts mean equal arrays.
        build: fills the folder it is given with .npy files and returns the entry's ``meta`` as plain JSON. When it
            raises, nothing is left behind.
    """
    text = json.dumps(facts, sort_keys=True)
    root = home / "data"
    folder = root / hashlib.sha256(text.encode()).hexdigest()
    root.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        built = not (folder / CONTENT).is_file()
        if built:
            with _unfinished(folder) as temporary:
                meta = build(temporary)
                (temporary / META).write_text(json.dumps(meta, sort_keys=True))
                arrays = sorted(file for file in temporary.iterdir() if file.suffix == ".npy")
                digests = [[file.name, file_digest(file)] for file in [*arrays, temporary / META]]
                (temporary / FACTS).write_text(text)
                (temporary / LEASE).touch()
                (temporary / CONTENT).write_text(hashlib.sha256(json.dumps(digests).encode()).hexdigest())
        _lease(folder)
    if built:
        evict(home)
    return Entry(folder)


def evict(home: Path) -> list[Path]:
    """Remove the longest unused entries until the rest fits; entries in use stay whatever their size.

    Args:
        home: MERGECORE_HOME. The limit is ``MERGECORE_DATA_CACHE_GB`` or ``LIMIT_GB``.

    Returns:
        What was removed; nothing while another process is at it.

    Raises:
        InputError: the variable is no number.
    """
    limit, root = _limit(), home / "data"
    with _locked(root / "evict", wait=False) as mine:
        if not mine:
            return []
        for leftover in root.glob(f"{UNFINISHED}*"):
            with _locked(root / leftover.name.removeprefix(UNFINISHED), wait=False) as abandoned:
                if abandoned:
                    shutil.rmtree(leftover)
        entries = [folder for folder in root.iterdir() if (folder / CONTENT).is_file()]
        sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in entries}
        used = {folder: (folder / LEASE).stat().st_mtime_ns for folder in entries}
        removed = []
        for folder in sorted(entries, key=lambda entry: (used[entry], entry.name)):
            if sum(sizes.values()) <= limit:
                break
            if _remove(folder):
                removed.append(folder)
                del sizes[folder]
    return removed


def _limit() -> float:
    stated = os.environ.get(LIMIT_VARIABLE)
    try:
        return float(stated or LIMIT_GB) * 1e9
    except ValueError:
        raise InputError(f"{LIMIT_VARIABLE} is {stated!r}, not a number of gigabytes.") from None


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of an entry; False when another process holds it and there is no waiting."""
    locks = folder.parent / "locks"
    locks.mkdir(exist_ok=True)
    lock = FileLock(locks / f"{folder.name}.lock")
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes the name ``folder`` when the block ends without an error; under the entry's lock."""
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a builder that was killed
    temporary.mkdir()
    try:
        yield temporary
        flush_folder(temporary)
        shutil.rmtree(folder, ignore_errors=True)  # an entry without its content key is none
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _lease(folder: Path) -> None:
    """Say that this process uses the entry, now and until it ends."""
    file = folder / LEASE
    if folder not in _leases or os.fstat(_leases[folder]).st_nlink == 0:
        if folder in _leases:  # the entry was removed by hand and built again
            os.close(_leases.pop(folder))
        _leases[folder] = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(_leases[folder], fcntl.LOCK_SH)
    os.utime(file)


def _remove(folder: Path) -> bool:
    """Remove an entry, unless somebody builds or uses it."""
    with _locked(folder, wait=False) as free:
        if not free:
            return False
        descriptor = os.open(folder / LEASE, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(descriptor)  # new leases are taken under the entry's lock, which is ours
        gone = folder.with_name(f"{UNFINISHED}{folder.name}")
        folder.rename(gone)  # at once, so that a crash leaves no half entry
        shutil.rmtree(gone)
        return True
