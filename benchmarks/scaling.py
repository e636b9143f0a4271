"""What one process that drives W workers can keep busy, simulated for 10 to 10,000 workers from measured constants.

Measured here: what the driver does for one candidate (sending it, one look at all workers, fetching its result, the
ledger), the bytes of a call, and the start of a worker. Simulated: a queue of K candidates, W workers that take t
seconds for each with the spread of real evaluations, and one driver that serves them in the order they finish, as
`tasks.workers.WorkerPool` does. Nothing is known here of networks, shared file systems or machines that fail: what
they cost comes on top.
"""

from __future__ import annotations

import heapq
import pickle
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.tables import write_table
from mergecore.ledger import Fact, Ledger
from tasks.work import Job
from tasks.workers import IN_FLIGHT

WORKERS = (10, 100, 1000, 10_000)
SECONDS = (0.1, 1.0, 10.0, 60.0)
LOOKS = (10, 100, 1000, 10_000)
TASKS = 8
SPREAD = 0.1
"""Standard deviation of an evaluation's time, as a share of it."""
ROUNDS = 10
"""Candidates a worker."""


@dataclass(frozen=True)
class Costs:
    """Seconds of the driver.

    Attributes:
        send: of one call of a worker.
        fetch: of one result.
        record: of one candidate's facts in the ledger, on the disk.
        look: of one look at all workers, a worker.
    """

    send: float
    fetch: float
    record: float
    look: float


def measure() -> tuple[Costs, float, int, dict[int, float]]:
    """The driver's costs, seconds to start a worker, bytes of a call's arguments, milliseconds of looks."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)

    @ray.remote(num_cpus=1)
    class Worker:
        def work(self, *arguments: object) -> tuple[list[float], int, str]:
            return [0.5] * TASKS, 0, "host:1"

    @ray.remote(num_cpus=4)
    def never() -> None:
        """Waits for a machine that is not there."""

    begun = time.perf_counter()
    worker = Worker.remote()
    ray.get(worker.work.remote())
    start = time.perf_counter() - begun
    job = Job(tuple(np.linspace(0, 1, TASKS)), tuple(range(TASKS)))
    count = 2000
    begun = time.perf_counter()
    sent = [worker.work.remote(*job.arguments) for _ in range(count)]
    send = (time.perf_counter() - begun) / count
    ray.wait(sent, num_returns=count)
    begun = time.perf_counter()
    for reference in sent:
        ray.get(reference)
    fetch = (time.perf_counter() - begun) / count
    waiting = [never.remote() for _ in range(max(LOOKS))]
    looks = {}
    for size in LOOKS:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            ray.wait(waiting[:size], num_returns=size, timeout=0)
            times.append(time.perf_counter() - begun)
        looks[size] = 1000 * float(np.median(times))
    ray.shutdown()
    with tempfile.TemporaryDirectory() as place, Ledger(Path(place) / "ledger.sqlite") as ledger:
        begun = time.perf_counter()
        for number in range(200):
            facts = [
                Fact(
                    key=f"{number} {task}",
                    metrics={"accuracy": 0.5, "cross_entropy": 1.0},
                    noise={"accuracy": 0.01},
                    reason="",
                    task=f"task {task}",
                    coefficients=job.coefficients,
                    matrix="m",
                    examples=1000,
                    seconds=1.0,
                    worker="host:1",
                )
                for task in range(TASKS)
            ]
            ledger.record_all((fact, "accuracy") for fact in facts)
        record = (time.perf_counter() - begun) / 200
    look = looks[max(LOOKS)] / 1000 / max(LOOKS)
    return Costs(send, fetch, record, look), start, len(pickle.dumps(job.arguments)), looks


def simulate(costs: Costs, workers: int, seconds: float, generator: np.random.Generator) -> float:
    """Share of their time that the workers work, from the first candidate to the last.

    Args:
        costs: of the driver.
        workers: how many.
        seconds: of one candidate, on average.
        generator: of the evaluations' times.
    """
    jobs = workers * ROUNDS
    times = np.maximum(generator.normal(seconds, SPREAD * seconds, jobs), 0.1 * seconds)
    clock, sent = 0.0, 0
    free = np.zeros(workers)  # when each has done what it was sent
    arrived: list[tuple[float, int]] = []

    def send(worker: int) -> None:
        nonlocal clock, sent
        clock += costs.send
        free[worker] = max(free[worker], clock) + times[sent]
        heapq.heappush(arrived, (free[worker], worker))
        sent += 1

    for _ in range(IN_FLIGHT):
        for worker in range(workers):
            send(worker)
    while arrived:
        clock = max(clock, arrived[0][0]) + 2 * costs.look * workers
        ready = []
        while arrived and arrived[0][0] <= clock:
            ready.append(heapq.heappop(arrived)[1])
        clock += len(ready) * (costs.fetch + costs.record)
        for worker in ready:
            if sent < jobs:
                send(worker)
    return float(times.sum() / (workers * clock))


def main() -> None:
    """Measure, simulate, print and store the table."""
    costs, start, size, looks = measure()
    generator = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for workers in WORKERS:
        shares = {f"t = {t:g} s": f"{simulate(costs, workers, t, generator):.2f}" for t in SECONDS}
        rows.append({"workers": workers, **shares})
    per = costs.send + costs.fetch + costs.record
    milliseconds = [f"{1e3 * part:.2f}" for part in (per, costs.send, costs.fetch, costs.record)]
    shown = ", ".join(f"{ms:.2f}" for ms in looks.values())
    notes = (
        f"Share of their time that workers evaluate, {ROUNDS} candidates of {TASKS} tasks for each, the end, when "
        "some have nothing left to do, included. Measured: the driver takes "
        f"{milliseconds[0]} ms a candidate ({milliseconds[1]} to send it, {milliseconds[2]} to fetch its result, "
        f"{milliseconds[3]} for {TASKS} facts on the disk), so {1 / per:.0f} candidates a second at most; a look at "
        f"{', '.join(map(str, looks))} workers {shown} ms; a worker starts in {start:.1f} s; a call has {size} "
        "bytes."
    )
    write_table("scaling", rows, note=notes)


if __name__ == "__main__":
    main()
