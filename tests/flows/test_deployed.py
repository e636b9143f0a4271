"""Deployments on a real server with a real worker, from a clean clone: by command, by schedule, cancelled, resumed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from tests.browser import Page, browser
from tests.flows.conftest import CountedStudy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("git") is None or not Path(".git").exists(), reason="clones the repository"),
]
ROOT = Path(__file__).parent.parent.parent
WORKER = ["worker", "start", "--pool", "merging"]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Site:
    """A server, a pool, every deployment and a worker."""

    clone: Path
    environment: dict[str, str]
    url: str
    worker: psutil.Process | None = None

    def prefect(self, *arguments: str) -> str:
        """What a command prints; it must succeed."""
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=self.clone, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The API's answer; asked again where its database was locked, as Prefect's own client does."""
        import httpx

        for _ in range(10):
            answer = httpx.request(method, f"{self.url}/{path}", json=body, timeout=60)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(1)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> str:
        """The id of ``flow/deployment``."""
        return str(self.ask("GET", f"deployments/name/{name}")["id"])

    def trigger(self, name: str, parameters: dict[str, Any]) -> str:
        """A run's id, as the UI's form makes one."""
        path = f"deployments/{self.deployment(name)}/create_flow_run"
        return str(self.ask("POST", path, {"parameters": parameters})["id"])

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The deployment's runs."""
        return self.ask("POST", "flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})

    def state(self, run: str) -> dict[str, Any]:
        """A run's state."""
        return self.ask("GET", f"flow_runs/{run}")["state"]

    def end(self, run: str) -> dict[str, Any]:
        """Its state when it has ended."""
        return until(lambda: (found := self.state(run))["type"] in ENDED and found)


def until(condition: Callable[[], Any], seconds: float = 240) -> Any:
    """The first true value of the condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s")


@contextmanager
def process(arguments: list[str], site: Site, log: Path) -> Iterator[psutil.Process]:
    """A long-running command, ended with all its children."""
    with log.open("wb") as sink:
        command = [sys.executable, "-m", "prefect", *arguments]
        started = subprocess.Popen(command, cwd=site.clone, env=site.environment, stdout=sink, stderr=sink)
    found = psutil.Process(started.pid)
    try:
        yield found
    finally:
        children = []
        with suppress(psutil.NoSuchProcess):
            children = found.children(recursive=True)
        for each in (found, *children):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        started.wait()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("site")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place / "clone")], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(place / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "MERGECORE_HOME": str(place / "home"),
        "PYTHONPATH": f"{place / 'clone'}{os.pathsep}{place / 'study'}",
    }
    site = Site(place / "clone", environment, url)

    def answers() -> bool:
        with suppress(Exception):
            site.ask("GET", "health")
            return True
        return False

    with process(["server", "start", "--host", "127.0.0.1", "--port", str(port)], site, place / "server.log"):
        until(answers)
        environment_of_make = {**environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        venv = Path(sys.executable).parent.parent
        recipe = ["make", "--silent", "deploy", f"VENV={venv}", "--assume-old", f"{venv}/.installed"]
        subprocess.run(recipe, cwd=site.clone, env=environment_of_make, check=True, stdout=subprocess.DEVNULL)
        with process(WORKER, site, place / "worker.log") as site.worker:
            yield site


def study(site: Site, **arguments: Any) -> CountedStudy:
    """A study of the site's own; its folder is where the worker finds its metrics."""
    return CountedStudy(site.clone.parent / "study", **arguments)


def statuses(home: Path, name: str) -> list[str]:
    """Of the study's parent runs in MLflow."""
    with sqlite3.connect(home / "mlflow.db") as tracked:
        return [status for (status,) in tracked.execute("SELECT status FROM runs WHERE name = ?", (name,))]


def test_by_command_and_again_by_schedule(site: Site) -> None:
    counted = study(site)
    parameters = {"config": counted.config, "out": "runs/counted"}
    assert site.end(site.trigger("map/digits", parameters))["name"] == "Completed"
    calls = counted.calls
    assert set(calls.values()) == {1}
    assert (site.clone / "runs/counted/report.html").is_file()

    deployment = site.deployment("map/digits")
    cron = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True, "parameters": parameters}
    (made,) = site.ask("POST", f"deployments/{deployment}/schedules", [cron])

    def scheduled() -> Any:
        wanted = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"tags": {"all_": ["auto-scheduled"]}}}
        return next((r for r in site.ask("POST", "flow_runs/filter", wanted) if r["state"]["type"] in ENDED), None)

    try:
        run = until(scheduled, 150)
    finally:  # else it would go on firing under the tests after this
        site.ask("DELETE", f"deployments/{deployment}/schedules/{made['id']}")
    assert run["state"]["name"] == "Unchanged"
    assert "Nothing changed since" in run["state"]["message"]
    assert run["total_run_time"] < 30
    assert counted.calls == calls


def test_cancelled_in_the_middle_and_triggered_again(site: Site) -> None:
    counted = study(site, sleep=1.5)
    counted.log.unlink(missing_ok=True)
    parameters = {"config": {**counted.config, "name": "slow"}, "out": "runs/slow"}
    run = site.trigger("map/digits", parameters)
    until(lambda: sum(counted.calls.values()) >= 6)
    workers = [p for p in psutil.process_iter(["name", "cmdline"]) if "_Worker" in " ".join(p.info["cmdline"] or [])]
    assert workers
    site.prefect("flow-run", "cancel", run)
    began = time.monotonic()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers), 60)
    print(f"workers gone after {time.monotonic() - began:.1f} s")
    assert site.end(run)["type"] == "CANCELLED"
    stages = site.ask("POST", "task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert {stage["state_type"] for stage in stages} <= {"COMPLETED", "CRASHED"}
    home = Path(site.environment["MERGECORE_HOME"])
    assert statuses(home, "slow") == ["KILLED"]
    before = counted.calls
    kept = sum(before.values())
    assert kept < 60

    assert site.end(site.trigger("map/digits", parameters))["name"] == "Completed"
    assert sum(1 for count in counted.calls.values() if count > 1) <= 2  # of what the two workers were doing
    assert set(before) <= set(counted.calls)
    assert statuses(home, "slow") == ["FINISHED"]  # the same run, continued


@pytest.mark.skipif(shutil.which("chromium") is None, reason="a browser shows Prefect's UI here")
def test_by_the_form_in_the_ui_and_cancelled_there(site: Site, tmp_path: Path) -> None:
    counted = study(site, sleep=0.6)  # of its own: evaluations are known by their arguments
    counted.log.unlink(missing_ok=True)
    parameters = {"config": {**counted.config, "name": "clicked"}, "out": "runs/clicked"}
    address, deployment = site.url.removesuffix("/api"), site.deployment("map/digits")
    form = f"{address}/deployments/deployment/{deployment}"
    filled = f"{form}/run?parameters={quote(quote(json.dumps(parameters)))}"  # as "Copy to new run" makes it

    def field(page: Page, label: str, kind: str) -> str:
        return page.find("label", label) + f".closest('.p-label').querySelector('{kind}')"

    def submitted(page: Page) -> str:
        """The run that the form makes with one number changed."""
        before = {run["id"] for run in site.runs(deployment)}
        page.visit(filled)
        samples = field(page, "Samples (Optional)", "input")
        assert page.evaluate(f"({samples}).value") == "20"
        page.type_into(samples, "30")
        run = ""
        while not run:  # the form does not ask again where the server's database was locked
            page.click("button", "Submit")
            with suppress(AssertionError):
                run = until(lambda: next((r["id"] for r in site.runs(deployment) if r["id"] not in before), ""), 30)
        page.visit(f"{address}/runs/flow-run/{run}")
        return str(run)

    with browser(tmp_path) as page:
        page.visit(form)
        page.click("button", "Run")
        page.click("button", "Custom run")
        base = field(page, "Base", "textarea")
        assert page.evaluate(f"({base}).value") == "digits:base"  # the deployment's own parameters fill the form

        run = submitted(page)
        until(lambda: sum(counted.calls.values()) >= 6)
        page.click("button", "Cancel")
        page.click("button", "Confirm")
        assert site.end(run)["type"] == "CANCELLED"
        kept = counted.calls
        assert 6 <= sum(kept.values()) < 60

        run = submitted(page)
        assert site.end(run)["name"] == "Completed"
        page.visit(f"{address}/runs/flow-run/{run}")
        page.click("li", "Artifacts")
        page.find("div", "front")
        page.picture(tmp_path / "artifacts.png")
    assert set(kept) <= set(counted.calls)
    assert sum(1 for count in counted.calls.values() if count > 1) <= 2  # of what the two workers were doing
    assert len({line.split(maxsplit=1)[1] for line in counted.calls}) >= 30


def test_a_failure_carries_its_sentence(site: Site) -> None:
    counted = study(site)
    config = {**counted.config, "base": "/nowhere/base"}
    state = site.end(site.trigger("map/digits", {"config": config, "out": "runs/broken"}))
    assert state["type"] == "FAILED"
    assert "/nowhere/base" in state["message"]
    assert "\n" not in state["message"]


def test_the_prefect_worker_is_killed(site: Site) -> None:
    """Last here: it leaves no worker."""
    counted = study(site, sleep=0.5)
    counted.log.unlink(missing_ok=True)
    parameters = {"config": {**counted.config, "name": "orphan"}, "out": "runs/orphan"}
    run = site.trigger("map/digits", parameters)
    until(lambda: sum(counted.calls.values()) >= 6)
    assert site.worker is not None
    site.worker.kill()
    with process(WORKER, site, site.clone.parent / "second worker.log"):
        assert site.end(run)["name"] == "Completed"  # the study's own process goes on
        assert set(counted.calls.values()) == {1}
        again = site.end(site.trigger("map/digits", parameters))
    assert again["name"] == "Unchanged"
