"""The front of cheap objectives by a many-objective optimiser of pymoo. Suffixes: P population, N models, T objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mergecore.fronts.dominance import non_dominated, to_minimise
from mergecore.registry import Registry
from mergecore.surrogates import QuadraticSurrogate

ALGORITHMS = Registry(
    "algorithm",
    {
        "nsga3": "mergecore.fronts.optimise:_nsga3",
        "nsga2": "mergecore.fronts.optimise:_nsga2",
        "sms_emoa": "mergecore.fronts.optimise:_sms_emoa",
    },
)

Objectives = Callable[[np.ndarray], np.ndarray]


def stack(surrogates: Sequence[QuadraticSurrogate]) -> Objectives:
    """All surrogates as one function [P, N] -> [P, T]."""
    return lambda c: np.column_stack([surrogate.predict(c) for surrogate in surrogates])


def optimise_front(
    objectives: Sequence[QuadraticSurrogate] | Objectives,
    *,
    box: np.ndarray,
    maximise: Sequence[bool],
    algorithm: str = "nsga3",
    population: int = 200,
    generations: int = 300,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [P, N] and metrics [P, T] of the non-dominated final set."""
    from pymoo.core.problem import Problem
    from pymoo.optimize import minimize

    function = objectives if callable(objectives) else stack(objectives)

    class _Problem(Problem):
        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = to_minimise(function(x), maximise=maximise)

    problem = _Problem(n_var=len(box), n_obj=len(maximise), xl=box[:, 0], xu=box[:, 1])
    method = ALGORITHMS.get(algorithm)(population, len(maximise), seed)
    result = minimize(problem, method, ("n_gen", generations), seed=seed, verbose=False)
    c = np.atleast_2d(result.pop.get("X"))
    metrics = function(c)
    keep = non_dominated(metrics, maximise=maximise)
    return c[keep], metrics[keep]


def _nsga3(population: int, objectives: int, seed: int) -> Any:
    from pymoo.algorithms.moo.nsga3 import NSGA3
    from pymoo.util.ref_dirs import get_reference_directions

    directions = get_reference_directions("incremental", objectives, population) if False else get_reference_directions(
        "energy", objectives, population, seed=seed
    )
    return NSGA3(directions, pop_size=population)


def _nsga2(population: int, objectives: int, seed: int) -> Any:
    from pymoo.algorithms.moo.nsga2 import NSGA2

    return NSGA2(pop_size=population)


def _sms_emoa(population: int, objectives: int, seed: int) -> Any:
    from pymoo.algorithms.moo.sms import SMSEMOA

    return SMSEMOA(pop_size=population)
