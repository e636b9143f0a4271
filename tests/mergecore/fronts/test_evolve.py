"""NSGA-III on arrays against pymoo's own; the niching without a loop against the algorithm of the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pymoo.algorithms.moo.nsga3 import NSGA3, associate_to_niches, niching
from pymoo.core.problem import Problem
from pymoo.optimize import minimize

from mergecore.fronts import evolve
from mergecore.fronts.evolve import nsga2, nsga3, reference_directions, sms_emoa

BOX = np.array([(-1.0, 2.0), (0.0, 1.0), (0.0, 0.5)])


def costs(c: np.ndarray, tasks: int = 3) -> np.ndarray:
    """Squared distances to points of the box: a convex front."""
    targets = np.random.default_rng(4).uniform(BOX[:, 0], BOX[:, 1], size=(tasks, 3))
    return ((c[:, None] - targets) ** 2).sum(axis=2)


def start(population: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(BOX[:, 0], BOX[:, 1], size=(population, 3))


def pymoo_population(population: int, tasks: int, generations: int, seed: int) -> np.ndarray:
    class Costed(Problem):
        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = costs(x, tasks)

    problem = Costed(n_var=3, n_obj=tasks, xl=BOX[:, 0], xu=BOX[:, 1])
    algorithm = NSGA3(
        reference_directions(tasks, population),
        pop_size=population,
        sampling=start(population),
        eliminate_duplicates=False,
    )
    return minimize(problem, algorithm, ("n_gen", generations), seed=seed).pop.get("X")


def literal_niching(
    wanted: int, served: np.ndarray, niche: np.ndarray, distance: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """pymoo's loop over niches, which draws in its own order."""
    chosen = niching(np.empty(len(niche)), wanted, served.copy(), niche, distance, random_state=generator)
    return np.array(chosen, dtype=np.intp)


def literal_association(points: np.ndarray, directions: np.ndarray, ideal: np.ndarray, nadir: np.ndarray) -> Any:
    return associate_to_niches(points, directions, ideal, nadir)[:2]


@pytest.mark.parametrize(("population", "tasks"), [(40, 3), (41, 2), (60, 5), (20, 1)])
def test_every_other_step_is_pymoos_to_the_bit(population: int, tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolve, "_fill_niches", literal_niching)
    monkeypatch.setattr(evolve, "_associate", literal_association)
    for generations in (1, 2, 40):
        ours = nsga3(lambda c: costs(c, tasks), start(population), box_N2=BOX, generations=generations, seed=8)
        theirs = pymoo_population(population, tasks, generations, seed=8)
        assert np.array_equal(ours[-population:], theirs)


def test_nearest_direction_is_pymoos() -> None:
    generator = np.random.default_rng(0)
    points, directions = generator.random((300, 4)), reference_directions(4, 60)
    niche, distance = evolve._associate(points, directions, points.min(axis=0), points.max(axis=0))
    their_niche, their_distance = literal_association(points, directions, points.min(axis=0), points.max(axis=0))
    np.testing.assert_allclose(distance, their_distance, atol=1e-12)
    assert (niche == their_niche).mean() > 0.99  # rounding decides ties


class TestNiching:
    @pytest.mark.parametrize("seed", range(20))
    def test_serves_niches_as_evenly_as_the_paper(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        size, directions = int(generator.integers(2, 60)), int(generator.integers(1, 15))
        niche, distance = generator.integers(directions, size=size), generator.random(size)
        served = generator.integers(0, 3, size=directions)
        wanted = int(generator.integers(1, size + 1))
        ours = evolve._fill_niches(wanted, served, niche, distance, np.random.default_rng(1))
        theirs = literal_niching(wanted, served, niche, distance, np.random.default_rng(1))
        assert len(set(ours.tolist())) == wanted
        counts = [np.sort(served + np.bincount(niche[chosen], minlength=directions)) for chosen in (ours, theirs)]
        assert np.array_equal(*counts)
        for direction in np.unique(niche[ours]):
            if served[direction] == 0:
                members = np.flatnonzero(niche == direction)
                assert members[distance[members].argmin()] in ours

    def test_is_random_where_the_paper_is(self) -> None:
        """One served niche with four points, two wanted: every point is taken half of the time."""
        taken = np.zeros(4)
        for seed in range(2000):
            chosen = evolve._fill_niches(
                2, np.array([1]), np.zeros(4, int), np.array([0.1, 0.2, 0.3, 0.4]), np.random.default_rng(seed)
            )
            taken[chosen] += 1
        np.testing.assert_allclose(taken / 2000, 0.5, atol=0.05)

    def test_chooses_among_equally_served_niches_at_random(self) -> None:
        """Niches of 1, 2 and 5 points, one wanted: each niche gets it a third of the time, whatever its size."""
        niche = np.array([0, 1, 1, 2, 2, 2, 2, 2])
        taken = np.zeros(3)
        for seed in range(3000):
            chosen = evolve._fill_niches(1, np.zeros(3, int), niche, np.arange(8.0), np.random.default_rng(seed))
            taken[niche[chosen]] += 1
        np.testing.assert_allclose(taken / 3000, 1 / 3, atol=0.04)


class TestReferenceDirections:
    @pytest.mark.parametrize(
        ("tasks", "population", "count"),
        [(1, 200, 1), (2, 200, 200), (3, 200, 190), (8, 200, 156), (8, 8, 8), (3, 5, 3), (12, 100, 90)],
    )
    def test_fill_the_population(self, tasks: int, population: int, count: int) -> None:
        directions = reference_directions(tasks, population)
        assert directions.shape == (count, tasks)
        np.testing.assert_allclose(directions.sum(axis=1), 1)
        assert (directions >= 0).all()
        assert len(np.unique(directions.round(9), axis=0)) == count

    def test_reach_inside_with_many_objectives(self) -> None:
        assert (reference_directions(8, 200) > 0).all(axis=1).any()


@pytest.mark.parametrize("algorithm", [nsga3, nsga2, sms_emoa])
class TestEveryAlgorithm:
    def test_approaches_the_front_inside_the_box(self, algorithm: Any) -> None:
        found = algorithm(costs, start(30), box_N2=BOX, generations=100, seed=1)
        assert (found >= BOX[:, 0]).all()
        assert (found <= BOX[:, 1]).all()
        # the front of squared distances is the triangle of the targets
        targets = np.random.default_rng(4).uniform(BOX[:, 0], BOX[:, 1], size=(3, 3))
        normal = np.cross(targets[1] - targets[0], targets[2] - targets[0])
        normal /= np.linalg.norm(normal)
        first, last = (np.abs((c - targets[0]) @ normal).mean() for c in (start(30), found[-30:]))
        assert last < 0.5 * first

    def test_depends_on_the_seed_alone(self, algorithm: Any) -> None:
        one, same, other = (algorithm(costs, start(20), box_N2=BOX, generations=10, seed=s) for s in (3, 3, 4))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)

    @pytest.mark.parametrize("generations", [1, 2, 7, 150])
    def test_hands_on_the_last_population_and_enough_others(self, algorithm: Any, generations: int) -> None:
        population = 8
        found = algorithm(costs, start(population), box_N2=BOX, generations=generations, seed=0)
        assert len(found) % population == 0
        assert min(generations, 75) <= len(found) / population <= evolve.CANDIDATES / population
