"""Files that appear whole or not at all, and the folder that runs share."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergecore.errors import InputError


def home_folder() -> Path:
    """MERGECORE_HOME: ledger, task matrices, data cache, trained quickstart models, tracking database."""
    return Path(os.environ.get("MERGECORE_HOME") or ".mergecore").expanduser().resolve()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def writable_home() -> Path:
    """MERGECORE_HOME, which exists from now on.

    Raises:
        InputError: nothing can be written to it.
    """
    home = home_folder()
    make_writable(home, hint="MERGECORE_HOME names the folder that runs share; default: .mergecore.")
    return home


def make_writable(folder: Path, *, hint: str = "") -> None:
    """Create a folder where there is none.

    Raises:
        InputError: nothing can be written to it.
    """
    check_writable(folder, hint=hint)
    folder.mkdir(parents=True, exist_ok=True)


def check_writable(folder: Path, *, hint: str = "") -> None:
    """Find out now whether files can be written to a folder, or it can be made; nothing is left behind.

    Raises:
        InputError: they cannot.
    """
    try:
        there = folder
        while not os.path.lexists(there) and there != there.parent:
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = (
            "is a file, not a folder" if os.path.isfile(folder) else f"cannot be written to: {error.strerror or error}"
        )
        raise InputError(f"{str(folder)!r} {reason}.", hint) from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_json_mapping(file: Path) -> dict[str, Any]:
    """Content of a JSON file; empty when there is no such file, or it holds something else than a mapping.

    Raises:
        InputError: the file is not readable JSON.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError:
        raise InputError(f"{str(file)!r} is not readable JSON.") from None
    return content if isinstance(content, dict) else {}


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the whole new one."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary sibling to write, which takes the place of ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush_folder(folder: Path) -> None:
    """Make sure that every file under ``folder`` is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling to fill, renamed to ``folder`` when the block ends without an error.

    When another process has put ``folder`` there in the meantime, that one stays and ours is dropped: use it for
    folders whose name says their content.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        flush_folder(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
