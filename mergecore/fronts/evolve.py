"""Evolutionary many-objective optimisers: (costs, initial population) -> candidates for the front.

Every optimiser has the signature of `nsga3` and is one line in the table of `mergecore.fronts.optimise`. All
minimise, and expect costs of order one: pymoo's tolerances are absolute.

Shape suffixes: P population, N models, T objectives, D reference directions, Q parents and offspring together,
C candidates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import moocore
import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import HyperplaneNormalization
from pymoo.algorithms.moo.sms import SMSEMOA
from pymoo.core.callback import Callback
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import cross_sbx
from pymoo.operators.mutation.pm import mut_pm
from pymoo.optimize import minimize
from pymoo.util.ref_dirs import get_reference_directions

Costs = Callable[[np.ndarray], np.ndarray]

CANDIDATES = 1000
"""About so many points of the run, taken from evenly spaced generations, are handed on as candidates."""

SBX_ETA, MUTATION_ETA, MUTATION_SHARE = 30.0, 20.0, 0.9
"""pymoo's NSGA-III: crossover of every pair in half of its variables, mutation of 90 % of the offspring."""


def nsga3(costs: Costs, initial_PN: np.ndarray, *, box_N2: np.ndarray, generations: int, seed: int) -> np.ndarray:
    """NSGA-III (Deb and Jain, 2014) as pymoo has it, on arrays.

    pymoo keeps an object for each individual, which costs several times as much as the algorithm itself. Here the
    same generation, with pymoo's own crossover, mutation and normalisation, runs on whole arrays. It draws the random
    numbers that pymoo draws, except where niches are filled: there the order differs, the distribution does not.

    Args:
        costs: [P, N] -> [P, T].
        initial_PN: first generation, in the box; its size is the size of all.
        box_N2: lower and upper bound of each variable.
        generations: how many, the first included.
        seed: of pymoo's generator.

    Returns:
        Candidates [C, N]: the last population and evenly spaced earlier ones. Rows may repeat.
    """
    generator = np.random.default_rng(seed)
    count = len(initial_PN)
    population_PN, costs_PT = initial_PN, costs(initial_PN)
    directions_DT = reference_directions(costs_PT.shape[1], count)
    normalisation = HyperplaneNormalization(costs_PT.shape[1])
    order = _survivors(costs_PT, directions_DT, normalisation, count, generator)
    population_PN, costs_PT = population_PN[order], costs_PT[order]
    kept = [population_PN]
    for generation in range(2, generations + 1):
        offspring_PN = offspring(population_PN, box_N2, generator)
        both_QN = np.concatenate([population_PN, offspring_PN])
        both_QT = np.concatenate([costs_PT, costs(offspring_PN)])
        alive = _survivors(both_QT, directions_DT, normalisation, count, generator)
        population_PN, costs_PT = both_QN[alive], both_QT[alive]
        if _is_kept(generation, generations, count):
            kept.append(population_PN)
    return np.concatenate(kept[-_snapshots(count) :])


def nsga2(costs: Costs, initial_PN: np.ndarray, *, box_N2: np.ndarray, generations: int, seed: int) -> np.ndarray:
    """NSGA-II (Deb et al., 2002) by pymoo; arguments and result as in `nsga3`. Best with two or three objectives."""
    algorithm = NSGA2(pop_size=len(initial_PN), sampling=initial_PN)
    return _run(algorithm, costs, box_N2=box_N2, generations=generations, seed=seed)


def sms_emoa(costs: Costs, initial_PN: np.ndarray, *, box_N2: np.ndarray, generations: int, seed: int) -> np.ndarray:
    """SMS-EMOA (Beume et al., 2007) by pymoo; arguments and result as in `nsga3`.

    It computes exact hypervolume contributions in every step: fine with two or three objectives, minutes a
    generation with eight and a population of 200.
    """
    algorithm = SMSEMOA(pop_size=len(initial_PN), sampling=initial_PN)
    return _run(algorithm, costs, box_N2=box_N2, generations=generations, seed=seed)


def reference_directions(objectives: int, population: int) -> np.ndarray:
    """At most ``population`` directions [D, T] on the simplex: the finest grid of Das and Dennis (1998) that fits.

    A grid with fewer divisions than objectives has no point inside, so a second, half as large layer is put into it,
    as Deb and Jain (2014) do for many objectives: 120 + 36 directions for T = 8 and a population of 200.
    """
    if objectives == 1:
        return np.ones((1, 1))
    layers = [_divisions(objectives, population)]
    left = population - _grid_size(objectives, layers[0])
    if layers[0] < objectives and left >= objectives:
        layers.append(_divisions(objectives, left))
    return np.concatenate(
        [
            get_reference_directions("das-dennis", objectives, n_partitions=divisions, scaling=scaling)
            for divisions, scaling in zip(layers, (1.0, 0.5), strict=False)
        ]
    )


def _grid_size(objectives: int, divisions: int) -> int:
    return math.comb(divisions + objectives - 1, objectives - 1)


def _divisions(objectives: int, most: int) -> int:
    divisions = 1
    while _grid_size(objectives, divisions + 1) <= most:
        divisions += 1
    return divisions


def _snapshots(population: int) -> int:
    return max(1, CANDIDATES // population)


def _is_kept(generation: int, generations: int, population: int) -> bool:
    return (generations - generation) % max(1, generations // _snapshots(population)) == 0


def offspring(population_PN: np.ndarray, box_N2: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Random tournaments, simulated binary crossover, polynomial mutation; every draw where pymoo has it."""
    count, models = population_PN.shape
    pairs = math.ceil(count / 2)
    permutations = [generator.permutation(count) for _ in range(math.ceil(4 * pairs / count))]
    rivals = np.concatenate(permutations)[: 4 * pairs].reshape(-1, 2)
    winners = rivals[np.arange(2 * pairs), generator.integers(0, 2, size=2 * pairs)].reshape(pairs, 2)
    generator.random(pairs)  # pymoo: which pairs to cross (all)
    generator.random((pairs, 1))  # pymoo: which pairs may exchange variables (all)
    half = np.full((pairs, 1), 0.5)
    crossed = cross_sbx(
        population_PN[winners].swapaxes(0, 1),
        *box_N2.T,
        np.full((pairs, 1), SBX_ETA),
        half,
        half,
        random_state=generator,
    ).reshape(-1, models)
    mutated = mut_pm(
        crossed,
        *box_N2.T,
        np.full(2 * pairs, MUTATION_ETA),
        np.full(2 * pairs, min(0.5, 1 / models)),
        at_least_once=False,
        random_state=generator,
    )
    is_mutated = generator.random(2 * pairs) <= MUTATION_SHARE
    return np.where(is_mutated[:, None], mutated, crossed)[:count]


def _survivors(
    costs_QT: np.ndarray,
    directions_DT: np.ndarray,
    normalisation: HyperplaneNormalization,
    count: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Indices of the ``count`` survivors: whole non-dominated fronts, then the niches that are served least."""
    rank_Q = moocore.pareto_rank(costs_QT)
    order, ends = np.argsort(rank_Q, kind="stable"), np.cumsum(np.bincount(rank_Q))
    splitting = int(np.searchsorted(ends, count))
    order = order[: ends[splitting]]
    with warnings.catch_warnings():  # pymoo switches all warnings of the process off in here
        normalisation.update(costs_QT, nds=order[: ends[0]])
    if len(order) == count:
        return order
    safe = int(ends[splitting - 1]) if splitting else 0
    niche, distance = _associate(costs_QT[order], directions_DT, normalisation.ideal_point, normalisation.nadir_point)
    served_D = np.bincount(niche[:safe], minlength=len(directions_DT))
    chosen = _fill_niches(count - safe, served_D, niche[safe:], distance[safe:], generator)
    return order[np.concatenate([np.arange(safe), safe + chosen])]


def _associate(
    costs_QT: np.ndarray, directions_DT: np.ndarray, ideal_T: np.ndarray, nadir_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest reference direction of each point and the distance to it (Deb and Jain, Algorithm 3).

    Scaled costs and directions are not negative, so the nearest direction is the one with the longest projection.
    """
    span_T = nadir_T - ideal_T
    scaled_QT = (costs_QT - ideal_T) / np.where(span_T == 0, 1e-12, span_T)
    unit_DT = directions_DT / np.linalg.norm(directions_DT, axis=1, keepdims=True)
    niche_Q = (scaled_QT @ unit_DT.T).argmax(axis=1)
    nearest_QT = unit_DT[niche_Q]
    along_Q = (scaled_QT * nearest_QT).sum(axis=1, keepdims=True)
    return niche_Q, np.linalg.norm(scaled_QT - along_Q * nearest_QT, axis=1)


def _fill_niches(
    wanted: int, served_D: np.ndarray, niche_Q: np.ndarray, distance_Q: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Choose ``wanted`` points of the splitting front (Deb and Jain, Algorithm 4); positions in ``niche_Q``.

    Point by point, the niche served least, a random one of several, takes its nearest point if it is unserved and
    else a random one. So the k-th point of a niche is taken when all niches are served (served + k) times: sorting the
    points by that level, then at random, gives the same choice without a loop.
    """
    luck_Q = generator.random(len(niche_Q))
    by_distance = np.lexsort((luck_Q, distance_Q, niche_Q))
    is_nearest = np.zeros(len(niche_Q), dtype=bool)
    is_nearest[by_distance[np.unique(niche_Q[by_distance], return_index=True)[1]]] = True
    first_Q = is_nearest & (served_D[niche_Q] == 0)
    by_turn = np.lexsort((luck_Q, ~first_Q, niche_Q))
    _, start, size = np.unique(niche_Q[by_turn], return_index=True, return_counts=True)
    turn = np.arange(len(niche_Q)) - np.repeat(start, size)
    level = served_D[niche_Q[by_turn]] + turn
    # a second draw: a niche's luck must not depend on that of its points
    return by_turn[np.lexsort((generator.random(len(niche_Q)), level))[:wanted]]


def _run(algorithm: Any, costs: Costs, *, box_N2: np.ndarray, generations: int, seed: int) -> np.ndarray:
    """Run one of pymoo's own algorithms and collect its candidates."""
    count = algorithm.pop_size
    kept: list[np.ndarray] = []

    class Costed(Problem):
        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = costs(x)

    class Snapshots(Callback):
        def notify(self, algorithm: Any) -> None:
            if _is_kept(algorithm.n_gen, generations, count):
                kept.append(algorithm.pop.get("X"))

    objectives = costs(algorithm.initialization.sampling[:1]).shape[1]
    problem = Costed(n_var=len(box_N2), n_obj=objectives, xl=box_N2[:, 0], xu=box_N2[:, 1])
    minimize(problem, algorithm, ("n_gen", generations), seed=seed, callback=Snapshots(), copy_algorithm=False)
    return np.concatenate(kept[-_snapshots(count) :])
