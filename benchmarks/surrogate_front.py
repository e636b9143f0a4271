"""Surrogates and front at N = T = 8: time, memory, and what ten times the generations would add.

250 noisy evaluations of eight accuracies, one quadratic surrogate each, then the front with a population of 200 and
300 generations. Targets: at most 2 s for surrogates and front together, and a hypervolume no more than 1 % below that
of 3000 generations. pymoo's own NSGA-III on the same surrogates, from the same first population, is the baseline.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.problem import Problem
from pymoo.optimize import minimize

sys.path.insert(0, str(Path(__file__).parents[1]))  # also when run as a script

from benchmarks.tables import write_table
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.evolve import reference_directions
from mergecore.fronts.indicators import hypervolume
from mergecore.fronts.optimise import optimise_front, stack
from mergecore.sampling import sample
from mergecore.surrogates import QuadraticFit, QuadraticSurrogate, fit_quadratic

MODELS, SAMPLES, POPULATION, GENERATIONS, ROUNDS, NOISE = 8, 250, 200, 300, 5, 0.01
BOX = np.array([(0.0, 1.0)] * MODELS)
UP = [True] * MODELS


def true_accuracies(seed: int) -> list[QuadraticSurrogate]:
    """Each task gains from its own model and loses, with interactions, from the seven others."""
    generator = np.random.default_rng(seed)
    found = []
    for task in range(MODELS):
        b_N = generator.normal(-0.4, 0.3, MODELS)
        b_N[task] = 5.0
        H_NN = generator.normal(0, 0.5, (MODELS, MODELS))
        A_NN = -0.5 * H_NN @ H_NN.T - 0.3 * np.eye(MODELS)
        A_NN[task, task] -= 4.0
        found.append(QuadraticSurrogate(generator.uniform(-1, 0.5), b_N, (A_NN + A_NN.T) / 2, 0, 1))
    return found


def evaluations(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [K, N] and noisy accuracies [K, T]."""
    c_KN = sample("sobol", SAMPLES, box=BOX, seed=seed)
    noise = NOISE * np.random.default_rng(seed).normal(size=(SAMPLES, MODELS))
    return c_KN, np.clip(stack(true_accuracies(seed))(c_KN) + noise, 0, 1)


def fit_all(c_KN: np.ndarray, metrics_KT: np.ndarray) -> list[QuadraticFit]:
    """One surrogate a task."""
    return [fit_quadratic(c_KN, metrics_K, lower=0, upper=1) for metrics_K in metrics_KT.T]


def front(fits: list[QuadraticFit], generations: int, seed: int) -> np.ndarray:
    """Predicted metrics [P, T] of the front."""
    surrogates = [fit.surrogate for fit in fits]
    return optimise_front(surrogates, box=BOX, maximise=UP, population=POPULATION, generations=generations, seed=seed)[
        1
    ]


def pymoo_front(fits: list[QuadraticFit], generations: int, seed: int) -> np.ndarray:
    """The last population of pymoo's NSGA-III as it comes."""
    function = stack([fit.surrogate for fit in fits])

    class Negated(Problem):
        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = -function(x)

    algorithm = NSGA3(
        reference_directions(MODELS, POPULATION),
        pop_size=POPULATION,
        sampling=sample("sobol", POPULATION, box=BOX, seed=seed),
    )
    problem = Negated(n_var=MODELS, n_obj=MODELS, xl=BOX[:, 0], xu=BOX[:, 1])
    metrics_PT = function(minimize(problem, algorithm, ("n_gen", generations), seed=seed).pop.get("X"))
    return metrics_PT[non_dominated(metrics_PT, maximise=UP)]


def measure(seed: int) -> dict[str, object]:
    """One row: a study with its own true accuracies."""
    c_KN, metrics_KT = evaluations(seed)
    front(fit_all(c_KN, metrics_KT), 5, seed)  # imports and first touches are not what is measured
    fitting, searching, baseline = [], [], []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        fits = fit_all(c_KN, metrics_KT)
        fitted = time.perf_counter()
        found_PT = front(fits, GENERATIONS, seed)
        searching.append(time.perf_counter() - fitted)
        fitting.append(fitted - begun)
    for _ in range(2):
        begun = time.perf_counter()
        plain_PT = pymoo_front(fits, GENERATIONS, seed)
        baseline.append(time.perf_counter() - begun)
    tracemalloc.start()
    front(fit_all(c_KN, metrics_KT), GENERATIONS, seed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    long_PT = front(fits, 10 * GENERATIONS, seed)
    worst_T = np.concatenate([found_PT, long_PT, plain_PT]).min(axis=0)
    single_T = stack([fit.surrogate for fit in fits])(np.eye(MODELS)).min(axis=0)

    def ratio(other_PT: np.ndarray, reference_T: np.ndarray) -> float:
        ours, theirs = (hypervolume(m, reference_T=reference_T, maximise=UP) for m in (found_PT, other_PT))
        return ours / theirs

    return {
        "study": seed,
        "mean held-out R²": float(np.mean([fit.cross_validated_r2 for fit in fits])),
        "fit s": statistics.median(fitting),
        "front s": statistics.median(searching),
        "both s": statistics.median(a + b for a, b in zip(fitting, searching, strict=True)),
        "pymoo front s": min(baseline),
        "peak MB": peak / 1e6,
        "HV / HV of 3000 (nadir)": ratio(long_PT, worst_T),
        "(single models)": ratio(long_PT, single_T),
        "HV / HV of pymoo (nadir)": ratio(plain_PT, worst_T),
        "(single models) ": ratio(plain_PT, single_T),
    }


def main() -> None:
    """Three studies, print and store the table."""
    note = (
        f"N = T = {MODELS}, K = {SAMPLES}, population {POPULATION}, {GENERATIONS} generations; median of {ROUNDS}. "
        "Targets: both <= 2 s; HV / HV of 3000 generations >= 0.99. Reference points: the worst value of any compared "
        "front in each task (nadir), and the worst predicted single model in each task."
    )
    write_table("surrogate_front", [measure(seed) for seed in range(3)], note=note)


if __name__ == "__main__":
    main()
