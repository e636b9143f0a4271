"""Progress as plain lines when the output is no terminal."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest
from rich.console import Console

from tasks import artifacts
from tasks.artifacts import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_now_and_then(clock, capsys) -> None:
    with Progress("round 0", unit="candidates") as progress:
        for done in range(101):
            clock[0] = 30.0 + done * 0.5 if done else 0.0
            progress.update(done, 100)
            progress.update(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "round 0: 1/100 candidates"  # the start-up before says nothing of the rate
    assert lines[1] == "round 0: 21/100 candidates, 2.0/s, 40 s left"
    assert lines[-1] == "round 0: 100/100 candidates, 2.0/s"
    assert len(lines) == 6


def test_short_work_is_silent(clock, capsys) -> None:
    with Progress("quick", unit="things") as progress:
        progress.update(1, 2)
        progress.update(2, 2)
    assert capsys.readouterr().err == ""


def test_output_that_nobody_reads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "PLAIN_SECONDS", 0.0)
    reader, writer = os.pipe()
    os.close(reader)
    nowhere = open(writer, "w")  # noqa: SIM115  # closing it would raise
    monkeypatch.setattr(sys, "stderr", nowhere)
    with Progress("label", unit="things") as progress:
        for done in range(4):
            progress.update(done, 3)
    other = Console(file=nowhere)  # as Prefect has for its logs
    other.print("a line")
    monkeypatch.undo()
    assert other.quiet
    with contextlib.suppress(BrokenPipeError):
        nowhere.close()
