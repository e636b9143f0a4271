"""Ray: actors that hold what is heavy, and candidates that travel as N floats. The only importer of ray."""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergecore.errors import EvaluationError, MergecoreError
from mergecore.evaluation import CandidateEvaluator, Outcome
from mergecore.files import usable_cores
from mergecore.study import Study

IN_FLIGHT = 2  # calls queued at an actor, so that it never waits for the driver


@dataclass
class Job:
    """One candidate and the tasks to measure on it."""

    coefficients: tuple[float, ...]
    measured: tuple[int, ...]
    attempts: int = field(default=0, compare=False)


def gpus_per_worker(study: Study) -> float:
    """GPUs, or the fraction of one, that each worker is given; "auto" gives one where candidates live on GPUs."""
    wanted = study.config.execution.gpus_per_worker
    return float(study.device == "cuda") if wanted == "auto" else wanted


class WorkerPool:
    """Evaluates jobs on Ray actors as they become free; started by the first job, so a run without work starts nothing.

    An actor that dies is replaced; the job it was working on is tried again, at most ``attempts`` times, then given
    to ``on_result`` as failed. Use it as a context manager: actors, and a local cluster it started, end with it.

    Args:
        study: says how many workers there are, and what each is given.

    Attributes:
        deaths: workers that died so far.
        decoded: examples that workers decoded or tokenised so far.
    """

    def __init__(self, study: Study) -> None:
        self._options = study.config.execution
        self._gpus = gpus_per_worker(study)
        self._actors: list[Any] = []
        self._sent: tuple[Study, Any] | None = None
        self._started_ray = False
        self.deaths = 0
        self.decoded = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._sent = [], None
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False

    @property
    def size(self) -> int:
        """Workers that are running."""
        return len(self._actors)

    def run(self, study: Study, jobs: Sequence[Job], on_result: Callable[[Job, list[Outcome], str], None]) -> None:
        """Evaluate every job; results arrive in the order they finish.

        Args:
            study: what candidates are made of; workers keep what is heavy until another study comes.
            jobs: what to do.
            on_result: called in this process with the job, one outcome a task, and the worker's name.

        Raises:
            EvaluationError: no worker could be started.
            InputError: a worker found that no candidate can be measured.
        """
        if not jobs:
            return
        import ray

        self._start(ray, len(jobs))
        reference = self._send(ray, study)
        waiting = deque(jobs)
        queues: dict[Any, deque[tuple[Any, Job]]] = {actor: deque() for actor in self._actors}
        while waiting or any(queues.values()):
            depth = IN_FLIGHT if len(waiting) > len(self._actors) else 1
            for actor, queue in queues.items():
                while waiting and len(queue) < depth:
                    job = waiting.popleft()
                    queue.append((actor.evaluate.remote([reference], job.coefficients, job.measured), job))
            owners = {queue[0][0]: actor for actor, queue in queues.items() if queue}
            (done,), _ = ray.wait(list(owners), num_returns=1)
            actor = owners[done]
            _, job = queues[actor].popleft()
            try:
                outcomes, worker = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            except ray.exceptions.RayError as error:
                self._replace(ray, actor, job, queues, waiting, on_result, error)
            else:
                self.decoded += sum(outcome.decoded for outcome in outcomes)
                on_result(job, outcomes, worker)

    def _start(self, ray: Any, jobs: int) -> None:
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent that the config does not ask for
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            address = self._options.ray_address
            local = {} if address else {"num_cpus": self._cores(), "include_dashboard": False}
            try:
                ray.init(address=address, logging_level="error", log_to_driver=False, **local)
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = f"the Ray cluster at {address!r}" if address else "a local Ray cluster"
                raise EvaluationError(f"Cannot reach {where}: {error}") from None
            self._started_ray = True
        wanted = jobs if self._options.workers == "auto" else min(self._options.workers, jobs)
        if len(self._actors) < wanted:  # an earlier call may have had less to do
            cpus = self._options.threads_per_worker
            available = ray.cluster_resources()
            fitting = available.get("CPU", 1) // cpus
            if self._gpus:
                fitting = min(fitting, available.get("GPU", 0) // self._gpus)
            # more actors than the cluster has room for would wait for ever
            further = min(wanted, max(1, int(fitting))) - len(self._actors)
            self._actors += [self._new_actor(ray) for _ in range(further)]

    def _send(self, ray: Any, study: Study) -> Any:
        """A reference by which workers find the study, sent once."""
        if self._sent is None or self._sent[0] is not study:
            self._sent = study, ray.put(study)
        return self._sent[1]

    def _cores(self) -> int:
        cores = usable_cores()
        asked = 0 if self._options.workers == "auto" else self._options.workers * self._options.threads_per_worker
        return max(cores, asked)

    def _new_actor(self, ray: Any) -> Any:
        cpus, gpus = self._options.threads_per_worker, self._gpus
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Worker)
        return remote.remote(cpus, os.getcwd(), sys.path)

    def _replace(
        self,
        ray: Any,
        actor: Any,
        job: Job,
        queues: dict[Any, deque[tuple[Any, Job]]],
        waiting: deque[Job],
        on_result: Callable[[Job, list[Outcome], str], None],
        error: Exception,
    ) -> None:
        """A worker died: what it had not begun goes back to the queue, what it was doing counts one attempt."""
        self.deaths += 1
        for _, unstarted in reversed(queues.pop(actor)):
            waiting.appendleft(unstarted)
        ray.kill(actor)
        self._actors[self._actors.index(actor)] = fresh = self._new_actor(ray)
        queues[fresh] = deque()
        job.attempts += 1
        if job.attempts < self._options.attempts:
            waiting.append(job)
            return
        reason = f"the worker died {job.attempts} times: {str(error).strip().splitlines()[0]}"
        on_result(job, [Outcome({}, {}, 0, 0.0, reason[:500])] * len(job.measured), "")


def _cause(error: Any) -> Exception:
    """What went wrong in a worker, as our own error."""
    if isinstance(error.cause, MergecoreError):
        return error.cause
    return EvaluationError(f"A worker failed: {type(error.cause).__name__}: {error.cause}")


class _Worker:
    """The Ray actor: one process, one candidate at a time."""

    def __init__(self, threads: int, folder: str, import_path: list[str]) -> None:
        # relative paths and the user's own modules mean the same here as where the run was started
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path.extend(entry for entry in import_path if entry not in sys.path)
        self._threads = threads
        self._evaluator: CandidateEvaluator | None = None
        self._study = ""
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def evaluate(
        self, study: list[Any], coefficients: tuple[float, ...], measured: tuple[int, ...]
    ) -> tuple[list[Outcome], str]:
        """``study`` holds the reference to a study, which Ray resolves only where it is new to this worker."""
        (reference,) = study
        if self._evaluator is None or reference.hex() != self._study:
            import ray

            self._evaluator = None  # what is heavy goes before its successor comes
            self._evaluator = CandidateEvaluator(ray.get(reference), threads=self._threads)
            self._study = reference.hex()
        return self._evaluator.evaluate(coefficients, measured), self._name
