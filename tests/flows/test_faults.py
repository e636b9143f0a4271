"""Kills, deaths and bad metrics: no evaluation is lost or repeated, and the front is the undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.flows.conftest import CountedStudy

RUN = [sys.executable, "-m", "flows.cli", "run"]


def launch(study: CountedStudy, home: Path, out: Path) -> subprocess.Popen[str]:
    config = study.folder / "study.yaml"
    config.write_text(yaml.safe_dump(study.config))
    environment = {
        **os.environ,
        "MERGECORE_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PYTHONPATH": os.pathsep.join([str(study.folder), str(Path(__file__).parents[2])]),
    }
    return subprocess.Popen(
        [*RUN, str(config), "--out", str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    return output


def wait_for_calls(study: CountedStudy, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 240
    while sum(study.calls.values()) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def ledger_size(home: Path) -> int:
    import sqlite3

    if not (home / "ledger.sqlite").exists():
        return 0
    with sqlite3.connect(f"file:{home / 'ledger.sqlite'}?mode=ro", uri=True) as connection:
        return connection.execute("SELECT COUNT(*) FROM evaluations").fetchone()[0]


def kill_repeatedly(study: CountedStudy, home: Path, out: Path, kills: int, seed: int) -> int:
    """Kill -9 the run at random moments, then let it finish; returns the evaluations that were in flight."""
    generator = random.Random(seed)
    in_flight = 0
    for _ in range(kills):
        before = sum(study.calls.values())
        process = launch(study, home, out)
        wait_for_calls(study, process, before + generator.randint(1, 12))
        time.sleep(generator.random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        time.sleep(1.0)  # Ray's processes follow their driver
        in_flight = sum(study.calls.values()) - ledger_size(home)
        # two workers with two calls of two tasks each may have worked on, unheard
        assert 0 <= in_flight - (sum(study.calls.values()) - len(study.calls)) <= 8
        known = ledger_size(home)
        assert known <= len(study.calls)
    known, calls = ledger_size(home), sum(study.calls.values())
    finish(launch(study, home, out))
    # the last run evaluated exactly what the ledger did not know
    assert sum(study.calls.values()) - calls == ledger_size(home) - known
    return in_flight


def check_same_front(one: Path, two: Path) -> None:
    assert (one / "front.csv").read_bytes() == (two / "front.csv").read_bytes()
    assert (one / "surrogates.json").read_bytes() == (two / "surrogates.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_kill_9_of_the_run(tmp_path: Path) -> None:
    disturbed = CountedStudy(tmp_path / "disturbed", sleep=0.05)
    kill_repeatedly(disturbed, tmp_path / "h1", tmp_path / "out1", kills=1, seed=1)
    calm = CountedStudy(tmp_path / "disturbed", sleep=0.05)
    finish(launch(calm, tmp_path / "h2", tmp_path / "out2"))
    check_same_front(tmp_path / "out1", tmp_path / "out2")
    assert ledger_size(tmp_path / "h1") == ledger_size(tmp_path / "h2") >= 2 * 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [2, 3])
def test_kill_9_again_and_again(tmp_path: Path, seed: int) -> None:
    study = CountedStudy(tmp_path / "study", sleep=0.05)
    kill_repeatedly(study, tmp_path / "h1", tmp_path / "out1", kills=4, seed=seed)
    finish(launch(study, tmp_path / "h2", tmp_path / "out2"))
    check_same_front(tmp_path / "out1", tmp_path / "out2")


@pytest.mark.slow
@pytest.mark.timeout(580)
@pytest.mark.parametrize("overlap", [False, True])
def test_kill_9_in_the_middle_of_a_round(tmp_path: Path, overlap: bool) -> None:
    """Bayesian MAP: what a round proposes follows from what was told, so a continued run proposes the same."""
    search = {"method": "bayesian_map", "samples": 18, "batch": 4, "acquisition": "angular_bins", "overlap": overlap}
    disturbed = CountedStudy(tmp_path / "study", sleep=0.15)
    disturbed.config["search"] = search
    process = launch(disturbed, tmp_path / "h1", tmp_path / "out1")
    wait_for_calls(disturbed, process, 2 * 6 + 2 * 4 + 3)  # the first round, the second, and a part of the third
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(1.0)
    known, calls = ledger_size(tmp_path / "h1"), sum(disturbed.calls.values())
    assert 2 * 10 <= known < 2 * 18
    finish(launch(disturbed, tmp_path / "h1", tmp_path / "out1"))
    assert sum(disturbed.calls.values()) - calls == ledger_size(tmp_path / "h1") - known
    finish(launch(disturbed, tmp_path / "h2", tmp_path / "out2"))
    check_same_front(tmp_path / "out1", tmp_path / "out2")
    assert ledger_size(tmp_path / "h1") == ledger_size(tmp_path / "h2")


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_the_head_of_ray_dies(tmp_path: Path) -> None:
    """Ray would end the process after a minute without a word; nothing evaluated meanwhile is lost."""
    study = CountedStudy(tmp_path / "study", sleep=4.0)
    process = launch(study, tmp_path / "home", tmp_path / "out")
    wait_for_calls(study, process, 3)
    subprocess.run(["pkill", "-KILL", "-P", str(process.pid), "gcs_server"], check=True)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "has not answered for 40 s. Every evaluation that was done is kept" in output
    assert "Traceback" not in output
    time.sleep(1.0)
    known, calls = ledger_size(tmp_path / "home"), sum(study.calls.values())
    assert 8 <= known <= calls
    finish(launch(study, tmp_path / "home", tmp_path / "out"))
    assert sum(study.calls.values()) - calls == ledger_size(tmp_path / "home") - known
