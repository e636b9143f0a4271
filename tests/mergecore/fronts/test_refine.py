"""The last steps: greedy choice by hypervolume against the exact measure, descent that never trades."""

from __future__ import annotations

import moocore
import numpy as np
import pytest

from mergecore.fronts.refine import MARGIN, choose_by_hypervolume, descend, ends, refine

BOX = np.array([(0.0, 1.0)] * 4)
TARGETS = np.array([[0.2, 0.3, 0.4, 0.5], [0.9, 0.3, 0.1, 0.5], [1.4, 0.8, 0.5, -0.3]])


def costs(c: np.ndarray) -> np.ndarray:
    """Squared distances to three points, the last one outside of the box."""
    return ((c[:, None] - TARGETS) ** 2).sum(axis=2)


def uniform(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 4))


def sphere(count: int, tasks: int) -> np.ndarray:
    """Non-dominated costs on the unit sphere, concave front."""
    normal = np.abs(np.random.default_rng(tasks).normal(size=(count, tasks)))
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def volume(points: np.ndarray, everything: np.ndarray) -> float:
    low, high = everything.min(axis=0), everything.max(axis=0)
    return float(moocore.hypervolume((points - low) / (high - low), ref=np.full(points.shape[1], 1 + MARGIN)))


def exact_greedy(points: np.ndarray, count: int) -> list[int]:
    """The slow, obvious twin: the ends, then whatever adds most exact hypervolume."""
    chosen = [int(points[:, t].argmin()) for t in range(points.shape[1])]
    while len(chosen) < count:
        gains = [-1.0 if c in chosen else volume(points[[*chosen, c]], points) for c in range(len(points))]
        chosen.append(int(np.argmax(gains)))
    return chosen


class TestChoice:
    @pytest.mark.parametrize("tasks", [2, 3, 5])
    def test_is_as_good_as_exact_greedy_choice(self, tasks: int) -> None:
        points = sphere(120, tasks)
        chosen = choose_by_hypervolume(points, 15, generator=np.random.default_rng(0))
        slow = volume(points[exact_greedy(points, 15)], points)
        assert len(set(chosen.tolist())) == 15
        assert volume(points[chosen], points) > 0.98 * slow

    @pytest.mark.parametrize("tasks", [2, 3, 8])
    def test_begins_with_the_best_for_each_objective(self, tasks: int) -> None:
        points = sphere(80, tasks)
        chosen = choose_by_hypervolume(points, 20, generator=np.random.default_rng(0))
        best = set(points.argmin(axis=0).tolist())
        assert best == set(chosen[: len(best)].tolist())

    def test_of_equals_in_one_objective_the_end_is_the_better_one(self) -> None:
        points = np.array([[0.0, 0.5, 0.9], [0.0, 0.9, 0.1], [0.5, 0.0, 0.5]])
        assert choose_by_hypervolume(points, 1, generator=np.random.default_rng(0)).tolist() == [1]

    def test_a_longer_list_begins_with_the_shorter(self) -> None:
        points = sphere(100, 3)
        short, long = (choose_by_hypervolume(points, n, generator=np.random.default_rng(0)) for n in (10, 30))
        assert np.array_equal(short, long[:10])

    def test_does_not_depend_on_units(self) -> None:
        points = sphere(60, 3)
        plain, scaled = (
            choose_by_hypervolume(p, 12, generator=np.random.default_rng(0))
            for p in (points, points * [1e-6, 1.0, 1e6] + [5.0, 0.0, -3.0])
        )
        assert np.array_equal(plain, scaled)

    def test_takes_all_when_there_are_few(self) -> None:
        chosen = choose_by_hypervolume(sphere(7, 3), 50, generator=np.random.default_rng(0))
        assert sorted(chosen.tolist()) == list(range(7))

    @pytest.mark.parametrize("points", [[[0.3]], [[0.3, 0.4]], [[0.0, 1.0, 5.0], [1.0, 0.0, 5.0]]])
    def test_of_degenerate_fronts(self, points: list[list[float]]) -> None:
        chosen = choose_by_hypervolume(np.array(points), 3, generator=np.random.default_rng(0))
        assert sorted(chosen.tolist()) == list(range(len(points)))

    def test_of_very_many_objectives_does_not_overflow(self) -> None:
        with np.errstate(over="raise", invalid="raise"):
            chosen = choose_by_hypervolume(sphere(60, 60), 20, generator=np.random.default_rng(0))
        assert len(set(chosen.tolist())) == 20


class TestDescent:
    def test_no_objective_gets_worse(self) -> None:
        before = uniform(60)
        after = descend(costs, before, box_N2=BOX)
        assert (costs(after) <= costs(before)).all()
        assert (costs(after) < costs(before)).any(axis=1).all()
        assert ((after >= 0) & (after <= 1)).all()

    def test_reaches_the_pareto_set(self) -> None:
        """Without bounds in the way it is the triangle of the targets, where the hull of the gradients holds 0."""
        inside = np.array([[0.2, 0.3, 0.4, 0.5], [0.9, 0.3, 0.1, 0.5], [0.5, 0.8, 0.5, 0.3]])

        def distances(c: np.ndarray) -> np.ndarray:
            return ((c[:, None] - inside) ** 2).sum(axis=2)

        plane, _ = np.linalg.qr((inside[1:] - inside[0]).T)

        def off_plane(c: np.ndarray) -> np.ndarray:
            return np.linalg.norm((c - inside[0]) - (c - inside[0]) @ plane @ plane.T, axis=1)

        before = uniform(60)
        after = descend(distances, before, box_N2=BOX, steps=20)
        assert off_plane(after).max() < 0.01 * np.median(off_plane(before))

    def test_reaches_it_along_the_faces_of_the_box(self) -> None:
        """One objective whose minimum lies outside: the answer is its projection onto the box."""
        after = descend(lambda c: costs(c)[:, 2:], uniform(20), box_N2=BOX, steps=30)
        np.testing.assert_allclose(after, np.tile(np.clip(TARGETS[2], 0, 1), (20, 1)), atol=1e-4)

    def test_stays_where_nothing_can_improve(self) -> None:
        np.testing.assert_allclose(descend(costs, TARGETS[:2].copy(), box_N2=BOX), TARGETS[:2], atol=1e-5)

    def test_does_not_touch_its_argument(self) -> None:
        before = uniform(5)
        kept = before.copy()
        descend(costs, before, box_N2=BOX)
        assert np.array_equal(before, kept)

    def test_of_flat_objectives_is_nothing(self) -> None:
        before = uniform(5)
        assert np.array_equal(descend(lambda c: np.zeros((len(c), 2)), before, box_N2=BOX), before)


def test_ends_are_the_best_points_for_each_objective() -> None:
    np.testing.assert_allclose(ends(costs, uniform(10), box_N2=BOX), np.clip(TARGETS, 0, 1), atol=1e-4)


def test_ends_are_never_worse_than_the_best_start() -> None:
    def rough(c: np.ndarray) -> np.ndarray:
        return np.floor(5 * costs(c)) + np.sin(40 * c).sum(axis=1, keepdims=True)

    starts = uniform(30)
    assert (np.diag(rough(ends(rough, starts, box_N2=BOX))) <= rough(starts).min(axis=0)).all()


def test_refinement_improves_on_its_candidates() -> None:
    candidates = uniform(400)
    every = costs(candidates)
    refined = refine(costs, candidates, 20, box_N2=BOX, generator=np.random.default_rng(0))
    plain = candidates[
        choose_by_hypervolume(every[moocore.is_nondominated(every)], 20, generator=np.random.default_rng(0))
    ]
    assert len(refined) == 20
    assert moocore.is_nondominated(costs(refined)).all()
    assert volume(costs(refined), every) > 1.05 * volume(costs(plain), every)
