"""Prefect's embedded server for runs started by hand: its own process, its own log file, gone when the run ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mergecore.errors import MergecoreError

START_SECONDS = 120  # a first start creates the database, which takes over 20 s on a slow disk
STOP_SECONDS = 10
QUIET_SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # nothing is sent that the config does not ask for
    # services for deployments and schedules, which an embedded server has none of; they only contend for the database
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_ENABLED": "false",
}


@contextmanager
def prefect_server(log: Path) -> Iterator[None]:
    """Make sure that flows find a Prefect API: the configured one, or an embedded server for this block.

    The embedded server uses Prefect's ordinary database, so ``prefect server start`` shows the run afterwards. It
    listens on the loopback interface only and ends with this process, even when that is killed.

    Args:
        log: file for everything the server prints.

    Raises:
        MergecoreError: the server did not come up.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if PREFECT_API_URL.value():
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    with log.open("ab") as sink:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **QUIET_SERVER},
            start_new_session=True,  # Ctrl-C reaches us, and we end the server after the run has said goodbye
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    try:
        url = f"http://127.0.0.1:{port}/api"
        _wait_until_up(server, url, log)
        with temporary_settings({PREFECT_API_URL: url}):
            try:
                yield
            finally:
                hand_over()
    finally:
        _stop(server)


def hand_over() -> None:
    """Send what Prefect's background threads still hold, while there is a server to take it."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for service in (APILogWorker, EventsWorker):
        service.drain_all(timeout=STOP_SECONDS)


def _wait_until_up(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise MergecoreError(f"Prefect's embedded server ended with code {server.returncode}.", f"Its log: {log}")
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise MergecoreError(f"Prefect's embedded server did not answer within {START_SECONDS} s.", f"Its log: {log}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    import ctypes

    parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGTERM)
