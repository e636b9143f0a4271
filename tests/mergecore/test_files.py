"""Folders are found to be of no use before work begins, in one sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mergecore.errors import InputError
from mergecore.files import check_writable, writable_home


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "one" / "two")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"file' is a file, not a folder\.$"):
        check_writable(tmp_path / "file")
    with pytest.raises(InputError, match=r"below' cannot be written to: Not a directory\.$"):
        check_writable(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "kept"


def test_below_a_folder_that_one_may_not_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "lstat", refused)
    monkeypatch.setattr(os, "stat", refused)
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(InputError, match=r"inner' cannot be written to: Permission denied\.$"):
        check_writable(tmp_path / "inner")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_where_nobody_can_write() -> None:
    with pytest.raises(InputError, match=r"'/proc/here' cannot be written to: "):
        check_writable(Path("/proc/here"))


def test_home_says_what_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGECORE_HOME", str(tmp_path / "home"))
    assert writable_home() == tmp_path / "home"
    assert (tmp_path / "home").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("MERGECORE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="MERGECORE_HOME names the folder that runs share"):
        writable_home()
