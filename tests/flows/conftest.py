"""One Prefect API and one Ray cluster for all flow tests, and studies of a callable that counts its calls."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import random_state, write_checkpoint

CALLABLE = '''
"""Metrics of the coefficients alone; every call is noted in a file."""
import math
import os
import signal
import time


def note(log, task, candidate):
    line = task + " " + " ".join(float(c).hex() for c in candidate.coefficients) + "\\n"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def measure(
    candidate, *, task, log, sleep=0.0, uneven=0.0, nan_above=9.0, die_once="", die_above=9.0, hang_above=9.0
):
    x, y = candidate.coefficients[0], candidate.coefficients[-1]
    time.sleep(sleep + uneven * (1e4 * (x + y) % 1))
    if x > die_above:
        os.kill(os.getpid(), signal.SIGKILL)
    if die_once and x > 0.5:
        try:
            os.close(os.open(die_once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    note(log, task, candidate)
    if x > hang_above:
        signal.sigwait([signal.SIGUSR2])
    if x > nan_above:
        return math.nan
    return sigmoid(1.5 * x - y * y - 0.2) if task == "a" else sigmoid(1.5 * y - x * x - 0.2)
'''


class CountedStudy:
    """A study over two tiny checkpoints whose tasks note every call.

    Attributes:
        config: plain YAML data.
        log: one line for each call.
    """

    def __init__(self, folder: Path, **args: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / "calls.log"
        (folder / "counted_metrics.py").write_text(CALLABLE)
        sources = {n: write_checkpoint(folder / f"{n}.safetensors", random_state(s)) for s, n in enumerate("pqr")}
        arguments = {"function": "counted_metrics:measure", "log": str(self.log), **args}
        self.config: dict[str, Any] = {
            "name": "counted",
            "base": sources["p"],
            "models": [{"name": name, "source": sources[name]} for name in "qr"],
            "tasks": [{"name": t, "evaluator": "python", "args": {**arguments, "task": t}} for t in "ab"],
            "search": {"method": "map", "samples": 20},
            "front": {"population": 24, "generations": 20, "verify": 4},
            "execution": {"workers": 2, "attempts": 2},
        }

    @property
    def calls(self) -> Counter[str]:
        """How often each (task, coefficients) was evaluated."""
        return Counter(self.log.read_text().splitlines()) if self.log.exists() else Counter()


@pytest.fixture
def counted(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> CountedStudy:
    """A counted study in a folder of its own, which is also the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "study"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "study"))
    return CountedStudy(tmp_path / "study")


@pytest.fixture
def three(counted: CountedStudy) -> dict[str, Any]:
    """The counted study with a third model, and a task for each model."""
    config = counted.config
    third = write_checkpoint(counted.folder / "s.safetensors", random_state(3))
    arguments = config["tasks"][0]["args"]
    tasks = [
        {"name": name, "evaluator": "python", "args": {**arguments, "task": task}}
        for name, task in zip("qrs", "abc", strict=True)
    ]
    return {**config, "models": [*config["models"], {"name": "s", "source": third}], "tasks": tasks}


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server of the tests' own, with its own database."""
    from prefect.settings import PREFECT_HOME, temporary_settings

    from flows.server import prefect_server

    place = tmp_path_factory.mktemp("prefect")
    os.environ["PREFECT_HOME"] = str(place)
    with temporary_settings({PREFECT_HOME: place}), prefect_server(place / "server.log"):
        yield


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Flows join the Ray that is already running, so it starts once for a module."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield
    ray.shutdown()
