"""When `budget.stop` ends Bayesian MAP, against the best fixed number of evaluations in hindsight.

Runs of `benchmarks.sample_efficiency` are gone through again, round by round. What an evaluation is worth follows from
the tolerance: a round of b candidates that adds less than the share h of the hypervolume is not worth it, so one
candidate costs h / b. The cost of stopping at k is the share of hypervolume that all samples would have had more, plus
k h / b; the best fixed number is that with the smallest mean cost over the seeds. For tasks that do not compete, one
digits task is measured on two halves of the data.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.measuring import Measurer
from benchmarks.sample_efficiency import SEEDS
from benchmarks.search_traces import BATCHES, BUDGETS, OURS, Arena, Trace, kept_trace, methods, study_named
from benchmarks.tables import write_table
from mergecore.budget import StopConfig
from mergecore.config_file import parse_config
from mergecore.digits import study_config
from mergecore.files import home_folder
from mergecore.fronts.config import FrontConfig
from mergecore.search.convergence import Convergence
from mergecore.study import prepare

STUDIES = ("digits:2", "digits:3", "vision8:2")
COARSE = FrontConfig(population=60, generations=40)
STOP = StopConfig()
NOTE = f"""\
Bayesian MAP with the usual tolerances (hypervolume {STOP.hypervolume}, gap {STOP.gap}, front {STOP.front}, \
{STOP.rounds} rounds). *Cost*: hypervolume lost against all samples, as a share, plus {STOP.hypervolume} for each \
round's worth of candidates; the best fixed number is chosen in hindsight over the same seeds. *Ratio*: \
mean cost of stopping by itself, over that of the best fixed number."""


def stopped_at(arena: Arena, trace: Trace, seed: int) -> int:
    """Candidates known when the search stops; all of them where it never does."""
    coefficients_KN, metrics_KT, _ = trace
    models, count = len(arena.study.models), len(coefficients_KN)
    _, noise_KT = arena.measure(coefficients_KN)
    search = arena.search(seed, method="bayesian_map", samples=count)
    convergence = Convergence(search, COARSE)
    for low, high in pairwise([0, *range(2 * (models + 1), count, BATCHES[models]), count]):
        search.tell(coefficients_KN[low:high], metrics_KT[low:high], noise_KT[low:high])
        convergence.observe()
        if convergence.enough(STOP):
            return high
    return count


def competing(name: str) -> dict[str, object]:
    """One of the studies of `benchmarks.sample_efficiency`."""
    study = study_named(name)
    models = len(study.models)
    budget, batch = BUDGETS[models], BATCHES[models]
    stops, volumes = [], []
    with Measurer(study) as measurer:
        arena = Arena(study, measurer)
        volume = arena.volume()
        for seed in range(SEEDS[models]):
            trace = kept_trace(arena, OURS[0], methods(name)[OURS[0]], budget, seed)
            stops.append(stopped_at(arena, trace, seed))
            grown = [volume(trace[1][:k]) for k in range(1, budget + 1)]
            volumes.append(np.array(grown) / grown[-1])
    first = 2 * (models + 1)
    price = STOP.hypervolume / batch
    costs = 1 - np.array(volumes) + price * np.arange(1, budget + 1)
    fixed = costs.mean(axis=0)[first - 1 :]
    own = float(np.mean([costs[seed, k - 1] for seed, k in enumerate(stops)]))
    best = first + int(fixed.argmin())
    return {
        "study": name,
        "stops at": ", ".join(map(str, stops)),
        "of": budget,
        "hypervolume there": f"{np.mean([volumes[seed][k - 1] for seed, k in enumerate(stops)]):.3f}",
        "cost": f"{own:.4f}",
        "best fixed number": best,
        "its cost": f"{fixed.min():.4f}",
        "ratio": f"{own / fixed.min():.2f}",
    }


def agreeing() -> dict[str, object]:
    """One task of the digits measured twice: nothing to trade."""
    config = study_config(tasks=2).model_dump()
    task = config["tasks"][0]
    halves = [
        {**task, "name": f"upright, {split}", "dataset": {**task["dataset"], "split": split, "test_split": None}}
        for split in ("validation", "test")
    ]
    study = prepare(parse_config(config | {"tasks": halves}), home_folder())
    stops, reasons = [], set()
    with Measurer(study) as measurer:
        for seed in range(SEEDS[2]):
            search = Arena(study, measurer).search(seed, method="bayesian_map", samples=BUDGETS[2])
            convergence, reason = Convergence(search, COARSE), ""
            while not reason and len(asked := search.ask()):
                search.tell(asked, *measurer.measure_with_noise(asked, study.search_tasks))
                convergence.observe()
                reason = convergence.enough(STOP)
            stops.append(len(search.coefficients_KN))
            reasons.add(reason.partition(":")[0] or "all samples")
    return {
        "study": f"one task twice ({'; '.join(sorted(reasons))})",
        "stops at": ", ".join(map(str, stops)),
        "of": BUDGETS[2],
    }


def main() -> None:
    """All studies whose runs are there or can be made."""
    rows = []
    for name in STUDIES:
        rows.append(competing(name))
        print(rows[-1], file=sys.stderr, flush=True)
    rows.append(dict.fromkeys(rows[0], "") | agreeing())
    write_table("stopping", rows, note=NOTE)


if __name__ == "__main__":
    main()
