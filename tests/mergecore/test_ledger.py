"""The ledger: durable, content-keyed, shared by processes, never losing a success to a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mergecore.errors import EvaluationError, InputError
from mergecore.ledger import Fact, Ledger

WRITER = """
import sys
from pathlib import Path
from mergecore.ledger import Fact, Ledger
with Ledger(Path(sys.argv[1])) as ledger:
    for i in range(int(sys.argv[3])):
        key = f"{sys.argv[2]}-{i}"
        ledger.record(Fact(key, {"m": i / 3}, {}, "", "t", (0.1,), "x", 1, 0.0, "w"), "m")
        print(key, flush=True)
"""


def fact(key: str, value: float = 0.5, *, reason: str = "") -> Fact:
    metrics = {} if reason else {"accuracy": value, "loss": -value}
    return Fact(key, metrics, {"accuracy": 0.01}, reason, "task", (0.1, 1 / 3), "matrix", 7, 0.25, "host:1")


def test_facts_come_back_exactly(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.record(fact("k", 1 / 3), "accuracy")
    with Ledger(tmp_path / "l.sqlite") as ledger:
        found = ledger.find(["k", "unknown", "k"], "accuracy")
        assert found == {
            "k": fact("k", 1 / 3).__class__(**{**fact("k", 1 / 3).__dict__, "metrics": {"accuracy": 1 / 3}})
        }
        assert ledger.find(["k"], "loss")["k"].metrics == {"loss": -1 / 3}
        assert ledger.find(["k"], "other") == {}
        assert len(ledger) == 1


def test_a_failure_is_kept_and_a_success_replaces_it_but_not_the_other_way(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.record(fact("k", reason="died"), "accuracy")
        assert ledger.find(["k"], "accuracy")["k"].reason == "died"
        ledger.record(fact("k", 0.7), "accuracy")
        assert ledger.find(["k"], "accuracy")["k"].metrics == {"accuracy": 0.7}
        ledger.record(fact("k", reason="died again"), "accuracy")
        ledger.record(fact("k", 0.1), "accuracy")
        assert ledger.find(["k"], "accuracy")["k"].metrics == {"accuracy": 0.7}


def test_coefficients_of_a_matrix_are_distinct_and_sorted(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        found = [((0.5, 1.0), "x"), ((0.1, 1 / 3), "x"), ((0.5, 1.0), "x"), ((-0.0, 2.0), "x"), ((0.0, 2.0), "x")]
        for i, (c, matrix) in enumerate([*found, ((0.7, 0.7), "y")]):
            ledger.record(Fact(str(i), {"m": 1.0}, {}, "", "t", c, matrix, 1, 0.0, "w"), "m")
        assert ledger.coefficients("x") == [(0.0, 2.0), (0.1, 1 / 3), (0.5, 1.0)]
        assert ledger.coefficients("z") == []


def test_many_keys_at_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        for i in range(1203):
            ledger.record(fact(str(i), i / 7), "accuracy")
        found = ledger.find(map(str, range(1500)), "accuracy")
    assert len(found) == 1203
    assert found["1202"].metrics["accuracy"] == 1202 / 7


def test_several_processes_write_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, f"p{n}", "60"], stdout=subprocess.DEVNULL) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with Ledger(path) as ledger:
        assert len(ledger.find((f"p{n}-{i}" for n in range(3) for i in range(60)), "m")) == 180


def test_what_was_recorded_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "p", "100000"], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(0.3)
    os.kill(writer.pid, signal.SIGKILL)
    said = ["p-0", *writer.stdout.read().split()]
    writer.wait()
    with Ledger(path) as ledger:
        assert set(ledger.find(said, "m")) == set(said)


def test_not_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite").write_text("this is no database, but a text of some length" * 50)
    with pytest.raises(InputError, match=r"l\.sqlite"):
        Ledger(tmp_path / "l.sqlite")


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "l.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(InputError, match="another version"):
        Ledger(tmp_path / "l.sqlite")


def test_a_full_disk_stops_with_a_sentence_and_keeps_the_rest(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.record(fact("before"), "accuracy")
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(EvaluationError, match="cannot be written"):
            [ledger.record(fact(f"key {i}" * 50), "accuracy") for i in range(1000)]
        ledger._connection.execute("PRAGMA max_page_count = 100000")
        ledger.record(fact("after"), "accuracy")
        assert set(ledger.find(["before", "after"], "accuracy")) == {"before", "after"}
