"""Ray: actors that hold what is heavy; candidates travel as N floats, batches as row numbers.

A training of routers is data-parallel by the same actors: gradients in routing weights are a few kilobytes, so they are
added up here, in a fixed order, and any number of workers gives the same bits.
"""

from __future__ import annotations

import math
import os
import resource
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mergecore.data.cache import decoded
from mergecore.errors import EvaluationError, MergecoreError, first_line
from mergecore.evaluation import CandidateEvaluator, Outcome
from mergecore.execution import gpus_per_worker
from mergecore.pareto_moe.losses import Batch, RoutedLosses, RoutedStudy
from mergecore.study import Study
from tasks.cluster import SIGNAL_SECONDS, Cluster, Head
from tasks.patience import Patience
from tasks.signals import Arrived
from tasks.work import Ongoing, OnResult, SomeWork, Work

IN_FLIGHT = 2  # calls queued at an actor, so that it never waits for the driver
CHOOSING_SECONDS = 0.1  # between two looks at whether further work has been chosen
LOOK_SECONDS = 10  # between two looks at whether a cluster has room for more actors


class WorkerPool:
    """Evaluates jobs on Ray actors as they become free; started by the first job, so a run without work starts nothing.

    An actor that dies or hangs is replaced; the job it was working on is tried again, at most ``attempts`` times, then
    given to ``on_result`` as failed. Use it as a context manager: actors, and a local cluster it started, end with it.

    Args:
        study: says how many workers there are, and what each is given.

    Attributes:
        deaths: workers that died or were ended so far.
        decoded: examples that workers decoded or tokenised so far.
    """

    def __init__(self, study: Study) -> None:
        self._options = study.config.execution
        self._gpus = gpus_per_worker(study.config)
        self._cluster = Cluster(self._options, self._gpus)
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}  # what answers when an actor has a place and runs, to the actor
        self._sent: tuple[Study | RoutedStudy, Any] | None = None
        self._begun: Ongoing | None = None  # where actors are at something that nobody waits for yet
        self._patience = Patience(self._options.minutes_per_evaluation)
        self._looked = -math.inf
        self._stillborn = 0
        self.deaths = 0
        self.decoded = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        if not self._cluster.lost:
            if self._begun is not None:
                self._keep_done(ray, self._begun)
            for actor in self._actors:
                ray.kill(actor)
        self._cluster.stop()
        self._actors, self._starting, self._sent, self._begun = [], {}, None, None

    def begun(self, jobs: Sequence[SomeWork]) -> list[SomeWork]:
        """Those of the jobs that workers are at already."""
        under_way = self._begun.under_way() if self._begun is not None else []
        return [job for job in jobs if job in under_way]

    def leave_to(self, on_result: OnResult) -> None:
        """Who is told of work that was begun and that no further `run` waits for."""
        if self._begun is not None:
            self._begun.on_result = on_result

    @property
    def size(self) -> int:
        """Workers that are running."""
        return len(self._running())

    def peak_bytes(self) -> int:
        """The most memory that one worker has used: of its GPU where it has one, else resident; 0 without workers."""
        import ray

        return max(ray.get([actor.peak_bytes.remote() for actor in self._running()]), default=0)

    def run(
        self,
        subject: Study | RoutedStudy,
        jobs: Sequence[SomeWork],
        on_result: Callable[[SomeWork, Any, str], None],
        further: Callable[[], Sequence[SomeWork] | None] | None = None,
    ) -> None:
        """Do every job; results arrive in the order they finish.

        Args:
            subject: what candidates are made of; workers keep what is heavy until another one comes.
            jobs: what to do.
            on_result: called in this process with the job, its result, and the worker's name.
            further: called when all jobs are with workers, until it gives what is to be done next. Workers that are
                free begin with that; what they have not finished when the jobs are done is waited for by the next
                ``run`` on the same subject that has it among its jobs.

        Raises:
            EvaluationError: no worker could be started.
            InputError: a worker found that no candidate can be measured.
        """
        if not jobs:
            return
        import ray

        head = self._cluster.start()
        reference = self._send(ray, subject)
        begun, self._begun = self._begun, None
        ongoing = begun or Ongoing(queues={actor: deque() for actor in self._running()})
        ongoing.want(jobs, on_result, further)
        try:
            with Arrived() as signals:
                self._work(ray, head, reference, ongoing, signals)
            if ongoing.ahead:
                self._begun = ongoing
        except BaseException as error:  # cancelled: what is done already is not done again
            self._keep_done(ray, ongoing)
            if isinstance(error, SystemError) and error.__cause__ is not None:
                raise error.__cause__ from None  # a signal's exception that came up inside Ray
            raise

    def _work(self, ray: Any, head: Head, reference: Any, ongoing: Ongoing, signals: Arrived) -> None:
        waiting, queues = ongoing.waiting, ongoing.queues
        while ongoing.unfinished():
            signals.handle()
            if head.look():
                self._grow(ray, len(waiting) + sum(map(len, queues.values())))
            depth = IN_FLIGHT if len(waiting) > len(self._actors) else 1
            for actor, queue in queues.items():
                while waiting and len(queue) < depth:
                    job = waiting.popleft()
                    queue.append((getattr(actor, job.method).remote([reference], *job.arguments), job))
            if ongoing.begin():
                continue
            owners = ongoing.owners()
            awaited = [*owners, *self._starting]
            ray.wait(awaited, num_returns=1, timeout=CHOOSING_SECONDS if ongoing.choosing else SIGNAL_SECONDS)
            # a look at thousands of workers costs milliseconds, so all that is there is taken at once
            ready, _ = ray.wait(awaited, num_returns=len(awaited), timeout=0)
            ongoing.look()
            for done in ready:
                if done in self._starting:
                    self._welcome(ray, done, ongoing)
                else:
                    self._take(ray, owners.pop(done), ongoing)
            self._end_hung(ray, owners, ongoing)

    def _take(self, ray: Any, actor: Any, ongoing: Ongoing) -> None:
        """What an actor answers to the first of its queue, or that it died of it."""
        answer, job = ongoing.queues[actor].popleft()
        seconds = ongoing.looked - ongoing.began.pop(answer)
        try:
            result, fresh, worker = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except ray.exceptions.RayError as error:
            self._replace(ray, actor, job, ongoing, f"the worker died: {first_line(error)}")
        else:
            self.decoded += fresh
            self._patience.observe(job.kind, seconds)
            ongoing.done(job, result, worker)

    def _end_hung(self, ray: Any, owners: Mapping[Any, Any], ongoing: Ongoing) -> None:
        """Replace the actors that have been at one piece of work for longer than it can take."""
        for answer, actor in owners.items():
            job = ongoing.queues[actor][0][1]
            limit = self._patience.seconds(job.kind)
            if ongoing.looked - ongoing.began[answer] > limit:
                ongoing.queues[actor].popleft()
                ongoing.began.pop(answer)
                reason = f"no answer in {limit / 60:.3g} minutes (execution.minutes_per_evaluation)"
                self._replace(ray, actor, job, ongoing, reason)

    @staticmethod
    def _keep_done(ray: Any, ongoing: Ongoing) -> None:
        """Results that have arrived and were not looked at yet."""
        jobs = {answer: job for queue in ongoing.queues.values() for answer, job in queue}
        done = ray.wait(list(jobs), num_returns=len(jobs), timeout=0)[0] if jobs else []
        for answer in done:
            with suppress(Exception):  # of a worker that failed or died there is none
                result, _, worker = ray.get(answer)
                ongoing.done(jobs[answer], result, worker)

    def _grow(self, ray: Any, jobs: int) -> None:
        """More actors where there is work for them and a cluster, which may have grown, has room."""
        wanted = jobs if self._options.workers == "auto" else min(self._options.workers, jobs)
        due = len(self._actors) < wanted and time.monotonic() - self._looked > LOOK_SECONDS
        if due or not self.size:
            # more actors than the cluster has room for would wait for ever
            for _ in range(min(wanted, self._cluster.places()) - len(self._actors)):
                self._start_actor(ray)
            if len(self._actors) < wanted:
                self._looked = time.monotonic()

    def _send(self, ray: Any, subject: Study | RoutedStudy) -> Any:
        """A reference by which workers find the subject, sent once."""
        if self._sent is None or self._sent[0] is not subject:
            self._sent, self._begun = (subject, ray.put(subject)), None
            self._patience = Patience(self._options.minutes_per_evaluation)
        return self._sent[1]

    def _running(self) -> list[Any]:
        starting = set(self._starting.values())
        return [actor for actor in self._actors if actor not in starting]

    def _start_actor(self, ray: Any) -> None:
        """One more actor; it gets work when it runs, since the machine that it would run on may be gone."""
        cpus, gpus = self._options.threads_per_worker, self._gpus
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Worker)
        actor = remote.remote(cpus, os.getcwd(), sys.path)
        self._actors.append(actor)
        self._starting[actor.runs.remote()] = actor

    def _welcome(self, ray: Any, answer: Any, ongoing: Ongoing) -> None:
        """An actor that runs takes work; one that died before is replaced, a few times."""
        actor = self._starting.pop(answer)
        try:
            ray.get(answer)
        except ray.exceptions.RayError as error:
            self.deaths += 1
            self._stillborn += 1
            self._actors.remove(actor)
            if self._stillborn >= self._options.attempts * max(1, len(self._actors)):
                raise EvaluationError(f"Workers die before they begin: {first_line(error)}.") from None
            self._start_actor(ray)
        else:
            self._stillborn = 0
            self._cluster.has_room()
            ongoing.queues[actor] = deque()

    def _replace(self, ray: Any, actor: Any, job: Work, ongoing: Ongoing, reason: str) -> None:
        """A worker died or hangs: what it had not begun goes back to the queue, what it was at counts one attempt."""
        self.deaths += 1
        for _, unstarted in reversed(ongoing.queues.pop(actor)):
            ongoing.waiting.appendleft(unstarted)
        ray.kill(actor)
        self._actors.remove(actor)
        self._start_actor(ray)
        job.attempts += 1
        if job.attempts < self._options.attempts:
            ongoing.retry(job)
        else:
            ongoing.done(job, job.given_up(f"given up at attempt {job.attempts}: {reason}"[:500]), "")


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
        self._held: Any = None
        self._subject = ""
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def evaluate(
        self, study: list[Any], coefficients: tuple[float, ...], measured: tuple[int, ...]
    ) -> tuple[list[Outcome], int, str]:
        """Outcomes, how many examples were decoded for them, and the worker's name."""
        evaluator: CandidateEvaluator = self._hold(study, CandidateEvaluator)
        outcomes = evaluator.evaluate(coefficients, measured)
        return outcomes, sum(outcome.decoded for outcome in outcomes), self._name

    def gradient(self, routed: list[Any], batch: Batch) -> tuple[tuple[float, Any], int, str]:
        """A loss and its gradient, how many examples were decoded for them, and the worker's name."""
        before = decoded()
        losses: RoutedLosses = self._hold(routed, RoutedLosses)
        return losses.gradient(batch), decoded() - before, self._name

    def runs(self) -> None:
        """Answers when this process runs."""

    def peak_bytes(self) -> int:
        """The most memory that this process has used."""
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _hold(self, subject: list[Any], make: Callable[..., Any]) -> Any:
        """What is made of a subject; the list holds its reference, which Ray resolves only where it is new here."""
        (reference,) = subject
        if self._held is None or reference.hex() != self._subject:
            import ray

            self._held = None  # what is heavy goes before its successor comes
            self._held = make(ray.get(reference), threads=self._threads)
            self._subject = reference.hex()
        return self._held
