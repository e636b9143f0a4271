"""Rounds of Bayesian MAP that overlap (`search.overlap`), against rounds in turn: time, and what evaluations bring.

Time: the flow as a user runs it, four workers, three tasks whose evaluations take no core, as on GPUs: about ten
seconds a coefficient vector, a third more or less. What evaluations bring: hypervolume of what was evaluated, digits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from benchmarks.measuring import Measurer
from benchmarks.sample_efficiency import needed, shares_of
from benchmarks.search_traces import BUDGETS, Arena, study_named, trace_of_bayesian_map
from benchmarks.tables import write_table

WORKERS, SAMPLES, SECONDS = 4, 32, 10.0
STUDIES = ("digits:2",)
SEEDS = 5
MEASURE = """
import math, time

def measure(candidate, *, task, seconds):
    c = candidate.coefficients
    time.sleep(seconds * (1 + math.sin(1e4 * sum(c)) / 3))
    return 1 / (1 + math.exp(0.2 - 2 * c[task] + sum(x * x for x in c)))
"""


def minutes(folder: Path, batch: int, *, overlap: bool) -> float:
    """Of one search, with the start of its workers."""
    run = folder / f"{batch}-{overlap}"
    run.mkdir()
    (run / "sleeping.py").write_text(MEASURE)
    places = [str(run / f"{name}.safetensors") for name in ("base", "a", "b", "c")]
    for place in places:
        save_file({"w": torch.randn(4, 4)}, place)
    task = {"evaluator": "python"}
    arguments = {"function": "sleeping:measure", "seconds": SECONDS / 3}
    search = {"method": "bayesian_map", "samples": SAMPLES, "batch": batch, "overlap": overlap}
    study = {
        "name": "overlap",
        "base": places[0],
        "models": [{"name": Path(place).stem, "source": place} for place in places[1:]],
        "tasks": [task | {"name": f"t{t}", "args": arguments | {"task": t}} for t in range(3)],
        "search": search,
        "front": {"verify": 0},
        "execution": {"workers": WORKERS},
    }
    (run / "study.yaml").write_text(yaml.safe_dump(study))
    environment = os.environ | {"MERGECORE_HOME": str(run), "PREFECT_HOME": str(folder / "prefect")}
    environment["PYTHONPATH"] = os.pathsep.join([str(run), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "flows.cli", "run", str(run / "study.yaml"), "--out", str(run / "out")]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return float(json.loads((run / "out" / "summary.json").read_text())["spent"]["minutes"])


def timed() -> list[dict[str, object]]:
    """A row for each size of a round."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for batch in (3, 4):
            turn, over = (minutes(Path(folder), batch, overlap=overlap) for overlap in (False, True))
            what = f"minutes of {SAMPLES} vectors, {batch} a round on {WORKERS} workers"
            rows.append({"what": what, "in turn": turn, "overlapping": over, "ratio": over / turn})
    return rows


def brought(name: str) -> list[dict[str, object]]:
    """Rows of one study: shares of the hypervolume of both together, and evaluations for 98 % of the last in turn."""
    study = study_named(name)
    models = len(study.models)
    budget = BUDGETS[models]
    costs = np.arange(2 * (models + 1), budget + 1)
    found: dict[bool, list[np.ndarray]] = {False: [], True: []}
    with Measurer(study) as measurer:
        arena = Arena(study, measurer)
        volume = arena.volume()
        for seed in range(SEEDS):
            traces = {overlap: trace_of_bayesian_map(arena, budget, seed, overlap=overlap) for overlap in found}
            whole = volume(np.concatenate([trace[1] for trace in traces.values()]))
            for overlap, trace in traces.items():
                found[overlap].append(shares_of(trace, costs, volume) / whole)
    turn, over = (np.mean(found[overlap], axis=0) for overlap in (False, True))
    rows: list[dict[str, object]] = []
    for cost in (costs[0] + 6, costs[0] + 12, budget // 2, budget):
        at = int(np.flatnonzero(costs == cost)[0])
        what = f"{name}: share of the hypervolume after {cost}"
        rows.append({"what": what, "in turn": turn[at], "overlapping": over[at], "ratio": over[at] / turn[at]})
    taken = [needed(mean, costs, 0.98 * turn[-1]) for mean in (turn, over)]
    what = f"{name}: evaluations for 98 % of the last in turn"
    return [*rows, {"what": what, "in turn": taken[0], "overlapping": taken[1], "ratio": taken[1] / taken[0]}]


def main() -> None:
    """Measure, print and store the table."""
    rows = timed()
    for name in STUDIES:
        rows += brought(name)
    note = (
        f"Each coefficient vector takes {SECONDS:g} s, a third more or less, on one of {WORKERS} workers, and no core; "
        f"minutes from the start of the run. Digits: {SEEDS} seeds, rounds of 3 after the first."
    )
    write_table("overlap", rows, note=note)


if __name__ == "__main__":
    main()
