"""What our searches and their rivals evaluate on one study, in order: the runs behind figures of sample efficiency.

All methods measure the same models on the same validation data through one ledger. Runs are kept under MERGECORE_HOME;
remove their folder to repeat them.

Shape suffixes: k candidates of one batch, K of all, N coefficients, T objectives.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.measuring import Measurer
from benchmarks.rivals import rivals
from mergecore.config_file import parse_config
from mergecore.digits import study_config
from mergecore.files import home_folder
from mergecore.fronts.config import FrontConfig
from mergecore.fronts.indicators import hypervolume, worst_metrics
from mergecore.fronts.spread import spread_points
from mergecore.search import Search
from mergecore.study import Study, new_search, prepare

BUDGETS = {2: 40, 3: 50, 4: 60, 8: 120}
"""Evaluated coefficient vectors by N."""
LONGER = {8: 360}
"""Of rivals without models, by N, where those of ours are to be a third of theirs."""
BATCHES = {2: 3, 3: 3, 4: 3, 8: 6}
"""Candidates a round, of Bayesian MAP and of qLogNEHVI; the paper's is 3."""
PICTURES = {2: 600, 3: 200, 4: 600, 8: 200}
"""Of each set of vision8 by N: several thousand candidates are measured."""
TEXTS = 128
OURS = (
    "Bayesian MAP",
    "Bayesian MAP, refined front",
    "Bayesian MAP, angular bins",
    "MAP, half verified",
    "nested MAP",
)
MODELLED = "qLogNEHVI (BoTorch)"
LEFT_OUT = {"text6:3": ("MAP, half verified", "nested MAP")}
"""By study: runs of their own for each budget, too many where a candidate takes two seconds."""
Trace = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Coefficients [K, N] and metrics [K, T] that count, and the cost [K] at which each was known, in whole candidates."""


@dataclass(frozen=True)
class Arena:
    """One study, its directions, and the way to measure."""

    study: Study
    measurer: Measurer

    @property
    def sign_T(self) -> np.ndarray:
        return np.where(self.study.objectives.maximise, 1.0, -1.0)

    @property
    def folder(self) -> Path:
        """Where the runs on this study are kept: the same models on other data are another one."""
        return home_folder() / "sample_efficiency" / self.study.digest

    def volume(self) -> Callable[[np.ndarray], float]:
        """Metrics to hypervolume, against the worst single model on each task."""
        maximise = self.study.objectives.maximise
        reference_T = worst_metrics(self.measure(np.eye(len(self.study.models)))[0], maximise=maximise)
        return functools.partial(hypervolume, reference_T=reference_T, maximise=maximise)

    def measure(self, c_kN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.measurer.measure_with_noise(c_kN, self.study.search_tasks)

    def search(self, seed: int, **options: Any) -> Search:
        config = self.study.config.model_dump(exclude={"search"}) | {"search": {"seed": seed, **options}}
        return new_search(parse_config(config))


def trace_of_rival(arena: Arena, make: Callable[[int, int, int], Any], budget: int, seed: int) -> Trace:
    """A rival until its budget is spent."""
    models, tasks = len(arena.study.models), len(arena.study.objectives.names)
    rival = make(models, tasks, seed)
    c_KN, metrics_KT = np.empty((0, models)), np.empty((0, tasks))
    while len(c_KN) < budget:
        asked = rival.ask()
        found, _ = arena.measure(asked)
        rival.tell(asked, found * arena.sign_T)
        c_KN, metrics_KT = np.vstack([c_KN, asked]), np.vstack([metrics_KT, found])
    return c_KN[:budget], metrics_KT[:budget], np.arange(1, budget + 1.0)


def trace_of_bayesian_map(arena: Arena, budget: int, seed: int, **options: Any) -> Trace:
    """Bayesian MAP in rounds, which overlap where it asks ahead."""
    batch = BATCHES[len(arena.study.models)]
    search = arena.search(seed, method="bayesian_map", samples=budget, batch=batch, **options)
    asked = search.ask()
    while len(asked):
        ahead = search.ask_ahead(asked)
        search.tell(asked, *arena.measure(asked))
        asked = ahead if len(ahead) else search.ask()
    return search.coefficients_KN, search.metrics_KT, np.arange(1, budget + 1.0)


def trace_of_map(arena: Arena, budget: int, seed: int) -> Trace:
    """Plain MAP with half of a budget, whose front is verified with the other half; one such run for each budget."""
    c, metrics, cost = [], [], []
    models = len(arena.study.models)
    for total in sorted({*range(max(8, 2 * (models + 1)), budget, max(4, budget // 10)), budget}):
        search = arena.search(seed, method="map", samples=total // 2)
        asked = search.ask()
        search.tell(asked, *arena.measure(asked))
        front = search.front(FrontConfig(generations=100))
        chosen = spread_points(front.predicted_PT, total - len(asked), maximise=arena.study.objectives.maximise)
        found, _ = arena.measure(front.coefficients_PN[chosen])
        c.append(np.vstack([asked, front.coefficients_PN[chosen]]))
        metrics.append(np.vstack([search.metrics_KT, found]))
        cost.append(np.full(len(c[-1]), float(total)))
    return np.vstack(c), np.vstack(metrics), np.concatenate(cost)


def trace_of_nested_map(arena: Arena, budget: int, seed: int) -> Trace:
    """Nested MAP with more and more samples a pair; candidates of its last pair, and as many points of its front.

    What counts is measured on every task; what it measured on fewer on the way there counts by their share.
    """
    c, metrics, cost = [], [], []
    tasks = len(arena.study.objectives.names)
    for samples in (6, 8, 10, 14, 20, 30):
        search = arena.search(seed, method="nested_map", samples=samples, order="given")
        pairs = 0
        while len(asked := search.ask()):
            wanted = search.wanted_KT
            assert wanted is not None
            found, noise = arena.measure(asked)  # on all tasks, so that one ledger serves all; only the wanted count
            pairs += int(wanted.sum())
            search.tell(asked, np.where(wanted, found, np.nan), noise)
        front = search.front(FrontConfig(generations=100))
        chosen = spread_points(front.predicted_PT, samples, maximise=arena.study.objectives.maximise)
        verified, _ = arena.measure(front.coefficients_PN[chosen])
        total = pairs / tasks + len(chosen)
        if total > budget:
            break
        whole = np.isfinite(search.metrics_KT).all(axis=1)
        c.append(np.vstack([search.coefficients_KN[whole], front.coefficients_PN[chosen]]))
        metrics.append(np.vstack([search.metrics_KT[whole], verified]))
        cost.append(np.full(len(c[-1]), total))
    if not c:
        return np.empty((0, len(arena.study.models))), np.empty((0, tasks)), np.empty(0)
    return np.vstack(c), np.vstack(metrics), np.concatenate(cost)


def methods(name: str) -> dict[str, Callable[[Arena, int, int], Trace]]:
    """Every method that is run on a study."""
    models = models_of(name)

    def bayesian(**options: Any) -> Callable[[Arena, int, int], Trace]:
        return lambda arena, budget, seed: trace_of_bayesian_map(arena, budget, seed, **options)

    def rival(make: Callable[[int, int, int], Any]) -> Callable[[Arena, int, int], Trace]:
        return lambda arena, budget, seed: trace_of_rival(arena, make, budget, seed)

    ours = (
        bayesian(),
        bayesian(acquisition="front"),
        bayesian(acquisition="angular_bins"),
        trace_of_map,
        trace_of_nested_map,
    )
    found = dict(zip(OURS, ours, strict=True)) | {name: rival(make) for name, make in rivals(BATCHES[models]).items()}
    if models > 4:
        del found[OURS[1]]  # is what it chooses by itself
        del found[MODELLED]  # qLogNParEGO takes minutes for each round
    return {label: method for label, method in found.items() if label not in LEFT_OUT.get(name, ())}


def models_of(name: str) -> int:
    """N of a study's name."""
    return int(name.partition(":")[2])


def study_named(name: str) -> Study:
    """``digits:N``, or the first N tasks of a suite on fewer examples."""
    suite, models = name.partition(":")[0], models_of(name)
    if suite == "digits":
        return prepare(study_config(tasks=models), home_folder())
    config = parse_config(import_module(f"benchmarks.suites.{suite}").build(home_folder())).first(models)
    limit = PICTURES[models] if suite == "vision8" else TEXTS
    tasks = [
        task.model_copy(update={"dataset": task.dataset.model_copy(update={"limit": limit, "test_split": None})})
        for task in config.tasks
        if task.dataset is not None
    ]
    # float32 is the faster one on the CPUs that these tables were made on
    execution = config.execution.model_copy(update={"precision": "float32"}) if suite == "text6" else config.execution
    return prepare(config.model_copy(update={"tasks": tasks, "execution": execution}), home_folder())


def kept_trace(arena: Arena, name: str, method: Callable[..., Trace], budget: int, seed: int) -> Trace:
    """A run, from its file when it was done before."""
    folder = arena.folder
    file = folder / f"{''.join(ch if ch.isalnum() else '-' for ch in name)}-{seed}.npz"
    if not file.is_file():
        begun = time.perf_counter()
        trace = method(arena, budget, seed)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file.with_suffix(".part.npz"), c=trace[0], metrics=trace[1], cost=trace[2])
        file.with_suffix(".part.npz").rename(file)
        study = f"{arena.study.config.name}, N = {len(arena.study.models)}"
        print(f"{study}, {name}, seed {seed}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    with np.load(file) as found:
        return found["c"], found["metrics"], found["cost"]
