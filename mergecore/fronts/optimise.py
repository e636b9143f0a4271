"""The amortised Pareto front of MAP, Section 3: a many-objective optimiser on surrogates, where evaluation is free.

Shape suffixes: P points, N models, T objectives, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from mergecore.errors import InputError, NumericalError
from mergecore.fronts.dominance import non_dominated, to_minimise
from mergecore.registry import Registry
from mergecore.sampling import checked_box, sample
from mergecore.surrogates import QuadraticSurrogate
from mergecore.surrogates.quadratic import stack_quadratics

Objectives = Callable[[np.ndarray], np.ndarray]
"""Coefficients [P, N] to metrics [P, T], each row by itself."""

ALGORITHMS = Registry(
    "front algorithm",
    {
        "nsga3": "mergecore.fronts.evolve:nsga3",
        "nsga2": "mergecore.fronts.evolve:nsga2",
        "sms_emoa": "mergecore.fronts.evolve:sms_emoa",
    },
)


class Surrogate(Protocol):
    """Anything that predicts one metric, [P, N] -> [P]."""

    def predict(self, coefficients_KN: ArrayLike, /) -> np.ndarray:
        """Metrics at the coefficients."""


def stack(surrogates: Sequence[Surrogate]) -> Objectives:
    """T surrogates as one function [P, N] -> [P, T]; quadratic ones are predicted all at once."""
    if not surrogates:
        raise InputError("There are no surrogates to find a front of.")
    quadratics = [surrogate for surrogate in surrogates if isinstance(surrogate, QuadraticSurrogate)]
    if len(quadratics) == len(surrogates):
        return stack_quadratics(quadratics)
    return lambda coefficients_PN: np.stack([s.predict(coefficients_PN) for s in surrogates], axis=1)


def optimise_front(
    objectives: Sequence[Surrogate] | Objectives,
    *,
    box: ArrayLike,
    maximise: Sequence[bool],
    algorithm: str = "nsga3",
    population: int = 200,
    generations: int = 300,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The Pareto front of cheap objectives over a box, by at most ``population`` points.

    The optimiser starts from Sobol points, the base, the single models and the best point for each objective alone.
    Of what it visited, the non-dominated points with much hypervolume are kept, moved until no objective improves for
    free, and recombined once more (`mergecore.fronts.refine`). The same arguments give the same front to the bit.

    Args:
        objectives: T surrogates, or a vectorised function [P, N] -> [P, T] of the metrics.
        box: [N, 2], lower and upper bound of each coefficient: the box that the samples came from.
        maximise: [T], for each objective whether more is better.
        algorithm: "nsga3" (Deb and Jain, 2014; any number of objectives), "nsga2" (Deb et al., 2002; for two or
            three) or "sms_emoa" (Beume et al., 2007; exact hypervolume, slow past four objectives).
        population: points a generation, at least the number of objectives and 4; also the most that are returned.
        generations: generations, the first one included.
        seed: of everything random in here.

    Returns:
        coefficients_PN and predicted_PT, the metrics there in their own directions. No point dominates another and no
        two have equal metrics, so one objective gives one point. The best points for each objective come first, then
        the rest by what they add in hypervolume: the first few are a good short list.

    Raises:
        InputError: unknown algorithm, bad box, too small a population, or objectives of the wrong shape.
        NumericalError: an objective is not finite somewhere in the box.
    """
    from mergecore.fronts.refine import ends, refine  # imports pymoo, which takes a second

    box_N2 = checked_box(box)
    evolve = ALGORITHMS.get(algorithm)
    tasks = len(maximise)
    if population < max(tasks, 4) or generations < 1:
        raise InputError(
            f"A population of {population} for {generations} generations cannot spread over {tasks} objectives.",
            f"Use a population of {max(tasks, 4)} or more and at least one generation.",
        )
    function = objectives if callable(objectives) else stack(objectives)
    initial_PN = sample("sobol", population, box=box_N2, seed=seed)
    costs = _scaled_costs(function, initial_PN, maximise)
    ends_TN = ends(costs, initial_PN, box_N2=box_N2)
    initial_PN = np.concatenate([ends_TN, initial_PN])[:population]

    candidates_CN = evolve(costs, initial_PN, box_N2=box_N2, generations=generations, seed=seed)
    candidates_CN = np.concatenate([ends_TN, candidates_CN])
    points_PN = refine(costs, candidates_CN, population, box_N2=box_N2, generator=np.random.default_rng(seed))
    predicted_PT = function(points_PN)
    front = non_dominated(predicted_PT, maximise=maximise)  # rounding may have made equals of neighbours
    return points_PN[front], predicted_PT[front]


def _scaled_costs(function: Objectives, initial_PN: np.ndarray, maximise: Sequence[bool]) -> Objectives:
    """The objectives as costs, scaled to [0, 1] over the initial points: an optimiser's tolerances are absolute."""

    def costs(points_PN: np.ndarray) -> np.ndarray:
        metrics_PT = np.asarray(function(points_PN), dtype=np.float64)
        if metrics_PT.shape != (len(points_PN), len(maximise)):
            raise InputError(
                f"The objectives of {len(points_PN)} points have shape {list(metrics_PT.shape)}.",
                f"They must have shape [{len(points_PN)}, {len(maximise)}].",
            )
        if not np.isfinite(metrics_PT).all():
            row = int(np.flatnonzero(~np.isfinite(metrics_PT).all(axis=1))[0])
            raise NumericalError(f"The objectives at {points_PN[row].tolist()} are {metrics_PT[row].tolist()}.")
        return to_minimise(metrics_PT, maximise=maximise)

    initial_PT = costs(initial_PN)
    low_T, span_T = initial_PT.min(axis=0), np.ptp(initial_PT, axis=0)
    span_T = np.where(span_T > 0, span_T, 1.0)
    return lambda points_PN: (costs(points_PN) - low_T) / span_T
