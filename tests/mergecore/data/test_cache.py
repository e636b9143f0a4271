"""The cache: built once whoever asks, whole or not at all, bounded, and what is in use stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mergecore.data.cache import LIMIT_VARIABLE, build_once, decoded, evict
from mergecore.errors import InputError

HEAD = """
import sys, time
from pathlib import Path
import numpy as np
from mergecore.data.cache import build_once, count_decoded, decoded

def build(folder):
    np.save(folder / "x.npy", np.arange(1000))
    count_decoded(1000)
    return {"answer": 42}

home, name = Path(sys.argv[1]), sys.argv[2]
"""
RACE = "build_once(home, [name], lambda folder: (time.sleep(0.3), build(folder))[1]); print(decoded())"
HOLD = "build_once(home, [name], build); print('ready', flush=True); sys.stdin.read()"
STUCK = "build_once(home, [name], lambda folder: (build(folder), print('ready', flush=True), time.sleep(60)))"


def start(script: str, home: Path, name: str) -> subprocess.Popen[str]:
    """A process of its own: leases end with their process."""
    command = [sys.executable, "-c", HEAD + script, str(home), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.communicate("")
    assert process.returncode == 0


def build_in_turn(home: Path, *names: str) -> None:
    for name in names:
        end(start(HOLD, home, name))


def entries(home: Path) -> set[str]:
    """Names (the one fact of these tests) of the entries that are there."""
    return {(folder / "facts.json").read_text()[2:-2] for folder in (home / "data").iterdir() if folder.name != "locks"}


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    processes = [start(RACE, tmp_path, "a") for _ in range(3)]
    built = sorted(int(process.communicate()[0]) for process in processes)
    assert built == [0, 0, 1000]


def test_a_killed_builder_leaves_nothing_half(tmp_path: Path) -> None:
    killed = start(STUCK, tmp_path, "a")
    ready(killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (half,) = [folder for folder in (tmp_path / "data").iterdir() if folder.name != "locks"]
    assert not (half / "content").exists()
    before = decoded()
    end(start(HOLD, tmp_path, "b"))
    assert entries(tmp_path) == {"b"}  # swept up by the next builder of anything
    built = build_once(tmp_path, ["a"], lambda folder: (np.save(folder / "x.npy", np.ones(3)), {})[1])
    assert built.array("x").tolist() == [1, 1, 1]
    assert entries(tmp_path) == {"a", "b"}
    assert decoded() == before


def test_a_builder_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, str]:
        np.save(folder / "x.npy", np.ones(3))
        raise InputError("no good")

    with pytest.raises(InputError, match="no good"):
        build_once(tmp_path, ["a"], fail)
    assert entries(tmp_path) == set()


def test_key_is_content(tmp_path: Path) -> None:
    def entry(name: str, value: float, meta: str) -> str:
        return build_once(tmp_path, [name], lambda folder: (np.save(folder / "x.npy", [value]), {"m": meta})[1]).key

    first = entry("a", 1.0, "same")
    assert entry("b", 1.0, "same") == first
    assert entry("c", 2.0, "same") != first
    assert entry("d", 1.0, "other") != first
    assert entry("a", 7.0, "never built") == first


def test_the_longest_unused_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_in_turn(tmp_path, "a", "b", "c", "a")  # a was used last
    size = sum(file.stat().st_size for file in (tmp_path / "data").rglob("*") if file.is_file()) / 3
    monkeypatch.setenv(LIMIT_VARIABLE, str(2.5 * size / 1e9))
    assert len(evict(tmp_path)) == 1
    assert entries(tmp_path) == {"a", "c"}
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    assert len(evict(tmp_path)) == 2
    assert entries(tmp_path) == set()


def test_what_a_process_uses_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    user = start(HOLD, tmp_path, "a")
    ready(user)
    build_in_turn(tmp_path, "b")  # whose building evicts
    assert entries(tmp_path) == {"a", "b"}  # b was leased by its builder when that one looked
    evict(tmp_path)
    assert entries(tmp_path) == {"a"}
    end(user)
    evict(tmp_path)
    assert entries(tmp_path) == set()


def test_what_was_removed_by_hand_is_built_and_leased_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(folder: Path) -> dict[str, int]:
        np.save(folder / "x.npy", np.ones(3))
        return {}

    first = build_once(tmp_path, ["a"], build)
    for file in first.folder.iterdir():
        file.unlink()
    first.folder.rmdir()
    assert build_once(tmp_path, ["a"], build).array("x").tolist() == [1, 1, 1]
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    assert evict(tmp_path) == []


def test_use_is_remembered(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, int]:
        np.save(folder / "x.npy", np.ones(3))
        return {}

    lease = build_once(tmp_path, ["a"], build).folder / "lease"
    os.utime(lease, (0, 0))
    build_once(tmp_path, ["a"], build)
    assert time.time() - lease.stat().st_mtime < 60


def test_a_bad_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(InputError, match="MERGECORE_DATA_CACHE_GB is 'much'"):
        build_once(tmp_path, ["a"], lambda folder: {})
