"""What workers are given: candidates, batches; and how far it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from mergecore.errors import EvaluationError
from mergecore.evaluation import Outcome
from mergecore.pareto_moe.losses import Batch

AWAY_SECONDS = 10  # without a look at answers, after which this process was stopped or held up
OnResult = Callable[[Any, Any, str], None]
"""Of a piece of work, its result and the worker's name."""
Further = Callable[[], Sequence[Any] | None]
"""More work; None as long as it is not known yet."""


class Work(Protocol):
    """Something that one worker does in one go.

    Class attributes:
        method: of the worker, which is called with the subject and ``arguments``.

    Attributes:
        attempts: how often a worker died of it or hung.
    """

    method: ClassVar[str]
    attempts: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the worker is told."""

    @property
    def kind(self) -> Hashable:
        """What it has in common with work on the same subject that takes about as long."""

    def given_up(self, reason: str) -> Any:
        """What stands for its result when no worker survives it."""


SomeWork = TypeVar("SomeWork", bound=Work)


@dataclass
class Job:
    """One candidate and the tasks to measure on it; gives one outcome a task."""

    method: ClassVar[str] = "evaluate"
    coefficients: tuple[float, ...]
    measured: tuple[int, ...]
    attempts: int = field(default=0, compare=False)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The candidate and the tasks."""
        return self.coefficients, self.measured

    @property
    def kind(self) -> Hashable:
        """The tasks: some have a part of the data, some more of it."""
        return self.measured

    def given_up(self, reason: str) -> list[Outcome]:
        """Failed evaluations."""
        return [Outcome({}, {}, 0, 0.0, reason)] * len(self.measured)


@dataclass
class Gradient:
    """One batch of a training of routers; gives its loss and its gradient in the routing weights."""

    method: ClassVar[str] = "gradient"
    batch: Batch
    place: int
    attempts: int = field(default=0, compare=False)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The batch."""
        return (self.batch,)

    @property
    def kind(self) -> Hashable:
        """All batches alike."""
        return self.method

    def given_up(self, reason: str) -> Any:
        """There is no step without it.

        Raises:
            EvaluationError: always.
        """
        raise EvaluationError(f"The training of the routers cannot go on: {reason}.")


@dataclass
class Ongoing:
    """What is to be done, and what each actor was given of it.

    Attributes:
        queues: for each actor that runs, the references of its answers and the work.
        waiting: for an actor that is free.
        ahead: what of it nobody waits for yet.
        on_result: is called with each result.
        further: gives what free actors are to begin with, once.
        began: when an actor got to what it is at, by the reference of its answer.
        looked: when answers were looked for last.
    """

    queues: dict[Any, deque[tuple[Any, Any]]]
    waiting: deque[Any] = field(default_factory=deque)
    ahead: list[Any] = field(default_factory=list)
    on_result: OnResult = lambda job, result, worker: None
    further: Further | None = None
    began: dict[Any, float] = field(default_factory=dict)
    looked: float = field(default_factory=time.monotonic)

    def want(self, jobs: Sequence[Any], on_result: OnResult, further: Further | None = None) -> None:
        """Wait for these jobs; those that actors are at already, or were, are the same work."""
        begun, tried = self.under_way(), list(self.waiting)
        self.waiting = deque(next((old for old in tried if old == job), job) for job in jobs if job not in begun)
        self.ahead = [job for job in begun if job not in jobs]
        self.on_result, self.further = on_result, further

    def under_way(self) -> list[Any]:
        """What actors were given."""
        return [job for queue in self.queues.values() for _, job in queue]

    @property
    def choosing(self) -> bool:
        """Whether no job waits for an actor any more, and further ones are not known yet."""
        return self.further is not None and not self.waiting

    def begin(self) -> bool:
        """Take further jobs where it is time for them; whether there are some."""
        if self.further is None or self.waiting or (jobs := self.further()) is None:
            return False
        self.further = None
        self.waiting.extend(jobs)
        self.ahead.extend(jobs)
        return bool(jobs)

    def retry(self, job: Any) -> None:
        """Once more, after all that is waited for as it is."""
        later = (place for place, other in enumerate(self.waiting) if other in self.ahead)
        place = len(self.waiting) if job in self.ahead else next(later, len(self.waiting))
        self.waiting.insert(place, job)

    def unfinished(self) -> bool:
        """Whether there is something that is waited for."""
        return len(self.waiting) + sum(map(len, self.queues.values())) > len(self.ahead)

    def done(self, job: Any, result: Any, worker: str) -> None:
        """Pass a result on."""
        if job in self.ahead:
            self.ahead.remove(job)
        self.on_result(job, result, worker)

    def look(self) -> None:
        """Answers are looked for now; time in which nobody could, such as of a stopped process, is no actor's."""
        now = time.monotonic()
        if (away := now - self.looked) > AWAY_SECONDS:
            self.began = {answer: begun + away for answer, begun in self.began.items()}
        self.looked = now

    def owners(self) -> dict[Any, Any]:
        """The actors that are at work, by the reference of their next answer."""
        self.look()
        found = {queue[0][0]: actor for actor, queue in self.queues.items() if queue}
        for answer in found:
            self.began.setdefault(answer, self.looked)
        return found
