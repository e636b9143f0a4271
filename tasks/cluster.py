"""The Ray cluster that workers live in: joined or started, its head watched, and the room that it has for them."""

from __future__ import annotations

import logging
import os
import socket
import time
from contextlib import suppress
from typing import Any

from mergecore.config import ExecutionConfig
from mergecore.errors import EvaluationError, first_line
from mergecore.execution import cluster_address, places
from mergecore.files import usable_cores
from tasks.artifacts import tell
from tasks.signals import own_end

TOKEN_HINT = "Is it up? A cluster may ask for its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (docs/scaling.md)."
LISTEN_SECONDS = 10  # that a cluster may take to answer before it is joined
SIGNAL_SECONDS = 1  # between two looks at signals and at the head while evaluations take their time
SILENT_SECONDS = 40  # that a cluster's head may not answer; after 60 Ray ends this process without a word to Prefect
REMEDY = "Set 'execution.threads_per_worker' and 'execution.gpus_per_worker' to what its machines have."
ROOM_SECONDS = 600  # that a cluster may have no machine that is large enough for a worker; one may be on its way


class Cluster:
    """A Ray cluster, from `start` to `stop`.

    Args:
        options: say which one it is, and how many threads a worker has.
        gpus: that each worker is given, or the part of one.
    """

    def __init__(self, options: ExecutionConfig, gpus: float) -> None:
        self._options, self._gpus = options, gpus
        self._started = False
        self._head: Head | None = None
        self._roomless_since: float | None = None

    @property
    def lost(self) -> bool:
        """Whether its head was given up; whatever is asked of Ray then waits for it."""
        return self._head is not None and self._head.lost

    def start(self) -> Head:
        """Join or start it; its head is looked for anew, since nobody did between two runs.

        Raises:
            EvaluationError: it cannot be reached.
        """
        import ray

        address = cluster_address(self._options)
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent that the config does not ask for
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            local: dict[str, Any] = {} if address else {"num_cpus": self._cores(), "include_dashboard": False}
            try:
                check_listening(address)
                with own_end():
                    # "local", since Ray would else join what someone started on this machine
                    ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                where = f"the Ray cluster at {address!r}" if address else "a local Ray cluster"
                hint = TOKEN_HINT if address else ""
                raise EvaluationError(f"Cannot reach {where}: {first_line(error)}.", hint) from None
            self._started = True
            if address and not self._gpus and self._options.gpus_per_worker == "auto" and self._has_gpus():
                tell(f"The Ray cluster at {address!r} has GPUs, but workers get none: set execution.gpus_per_worker.")
        # a client (ray://) knows no more than the server that it was given
        client = address if "://" in address else ""
        self._head = Head(client or ray.get_runtime_context().gcs_address)
        self._roomless_since = None
        return self._head

    def stop(self) -> None:
        """Leave it, or end it where `start` started it."""
        import ray

        if self._started and not self.lost:
            ray.shutdown()
        self._started, self._head, self._roomless_since = False, None, None

    def places(self) -> int:
        """How many workers find room in all its machines together, busy or not.

        At least one, for which a machine may be on its way.

        Raises:
            EvaluationError: no machine has been large enough for one for `ROOM_SECONDS`, or none can come.
        """
        import ray

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        found = sum(self._places_on(machine) for machine in machines)
        if found:
            self._roomless_since = None
            return found
        now = time.monotonic()
        lacking = f"No machine of the Ray cluster has {self._wanted()} that a worker is to have"
        if not cluster_address(self._options):
            raise EvaluationError(f"{lacking}.", REMEDY)
        if self._roomless_since is None:
            self._roomless_since = now
            tell(f"{lacking}; waiting {ROOM_SECONDS} s for one.")
        if now - self._roomless_since > ROOM_SECONDS:
            raise EvaluationError(f"{lacking}, and none came in {ROOM_SECONDS} s.", REMEDY)
        return 1

    def has_room(self) -> None:
        """A worker has come up, so its machine was large enough."""
        self._roomless_since = None

    @staticmethod
    def _has_gpus() -> bool:
        import ray

        return any(node["Alive"] and node["Resources"].get("GPU", 0) for node in ray.nodes())

    def _places_on(self, machine: dict[str, float]) -> int:
        found = places(machine.get("CPU", 0), self._options.threads_per_worker)
        return min(found, places(machine.get("GPU", 0), self._gpus)) if self._gpus else found

    def _wanted(self) -> str:
        cores = f"the {self._options.threads_per_worker} CPUs"
        return f"{cores} and {self._gpus:g} GPUs" if self._gpus else cores

    def _cores(self) -> int:
        """Of a local cluster: what the workers take that were asked for, whatever there is."""
        asked = 1 if self._options.workers == "auto" else self._options.workers
        return max(usable_cores(), asked * self._options.threads_per_worker)


class Head:
    """The process of a Ray cluster without which nothing new is found or started, on this machine or another.

    Args:
        address: host and port of it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.lost = False
        self._looked = self._answered = time.monotonic()

    def look(self) -> bool:
        """Whether it answers, as it was seen in the last second.

        Raises:
            EvaluationError: it has not for `SILENT_SECONDS`.
        """
        now = time.monotonic()
        if now - self._looked > SIGNAL_SECONDS:
            self._looked = now
            with suppress(OSError):
                check_listening(self.address, seconds=SIGNAL_SECONDS)
                self._answered = now
            self.lost = now - self._answered > SILENT_SECONDS
        if self.lost:
            raise EvaluationError(
                f"The head of the Ray cluster at {self.address!r} has not answered for {SILENT_SECONDS} s.",
                "Every evaluation that was done is kept; when the cluster is up, run the study again and it goes on.",
            )
        return self._answered == self._looked


def check_listening(address: str, *, seconds: float = LISTEN_SECONDS) -> None:
    """OSError at once where nothing listens; Ray would try for minutes. Addresses without a port are Ray's matter."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
