"""Measures of fronts: values by hand, slow twins, and the laws that each must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mergecore.errors import InputError
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.indicators import (
    generational_distance,
    hypervolume,
    igd_plus,
    inverted_generational_distance,
    preference_weighted_sums,
    preferences,
    win_rate,
    worst_metrics,
)

UP = [True, True, True]
FRONTS = arrays(float, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(0, 1, width=16))


def front(count: int, tasks: int, seed: int = 0) -> np.ndarray:
    normal = np.abs(np.random.default_rng(seed).normal(size=(count, tasks)))
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


class TestHypervolume:
    def test_by_hand(self) -> None:
        square = [[2.0, 1.0], [1.0, 2.0]]
        assert hypervolume(square, reference_T=[0, 0], maximise=[True, True]) == 3
        assert hypervolume(square, reference_T=[3, 3], maximise=[False, False]) == 3
        # second objective to minimise: boxes 2 x 2 and 1 x 1, the smaller inside the larger
        assert hypervolume(square, reference_T=[0, 3], maximise=[True, False]) == 4

    @pytest.mark.parametrize("method", ["exact", "approximate"])
    def test_is_the_share_of_random_points_that_are_dominated(self, method: str) -> None:
        points = front(15, 3)
        random = np.random.default_rng(1).random((200_000, 3))
        share = (random[:, None] <= points).all(axis=2).any(axis=1).mean()
        measured = hypervolume(points, reference_T=[0, 0, 0], maximise=UP, method=method)
        assert measured == pytest.approx(share, abs=0.004)

    @given(points=FRONTS, more=FRONTS)
    def test_grows_with_the_front(self, points: np.ndarray, more: np.ndarray) -> None:
        volume = hypervolume(points, reference_T=[0, 0, 0], maximise=UP)
        larger = hypervolume(np.concatenate([points, more]), reference_T=[0, 0, 0], maximise=UP)
        assert larger >= volume - 1e-12
        assert 0 <= volume <= 1

    @given(points=FRONTS)
    def test_counts_only_the_front(self, points: np.ndarray) -> None:
        kept = points[non_dominated(points, maximise=UP)]
        volume = hypervolume(points, reference_T=[0, 0, 0], maximise=UP)
        assert hypervolume(kept, reference_T=[0, 0, 0], maximise=UP) == pytest.approx(volume, abs=1e-12)

    @given(points=FRONTS, gain=st.floats(0.01, 1))
    def test_a_dominating_front_has_more(self, points: np.ndarray, gain: float) -> None:
        worse = hypervolume(points, reference_T=[-1, -1, -1], maximise=UP)
        assert hypervolume(points + gain, reference_T=[-1, -1, -1], maximise=UP) > worse

    def test_ignores_missing_metrics_and_points_beyond_the_reference(self) -> None:
        points = [[0.5, 0.5], [np.nan, 0.9], [0.9, -0.1], [np.inf, 1.0], [0.0, 1.0]]
        assert hypervolume(points, reference_T=[0, 0], maximise=[True, True]) == 0.25

    def test_of_nothing_is_nothing(self) -> None:
        assert hypervolume(np.empty((0, 2)), reference_T=[0, 0], maximise=[True, True]) == 0
        assert hypervolume([[np.nan, 1]], reference_T=[0, 0], maximise=[True, True]) == 0

    def test_of_one_objective_is_a_length(self) -> None:
        assert hypervolume([[0.25], [0.75]], reference_T=[1.0], maximise=[False]) == 0.75

    @pytest.mark.parametrize("tasks", [5, 7])
    def test_approximation_is_close(self, tasks: int) -> None:
        points = front(40, tasks)
        exact, approximate, again = (
            hypervolume(points, reference_T=np.zeros(tasks), maximise=[True] * tasks, method=method)
            for method in ("exact", "approximate", "approximate")
        )
        assert approximate == pytest.approx(exact, rel=0.005)
        assert approximate == again != exact

    def test_is_exact_up_to_seven_objectives_by_itself(self) -> None:
        for tasks, method in ((7, "exact"), (8, "approximate")):
            arguments = {"reference_T": np.zeros(tasks), "maximise": [True] * tasks}
            points = front(12, tasks)
            assert hypervolume(points, **arguments) == hypervolume(points, method=method, **arguments)
        assert hypervolume(points, method="exact", **arguments) == pytest.approx(
            hypervolume(points, **arguments), rel=0.01
        )

    @pytest.mark.parametrize(
        "options",
        [
            {"reference_T": [0.0]},
            {"reference_T": [0.0, np.nan]},
            {"reference_T": [[0.0, 0.0], [1.0, 1.0]]},
            {"maximise": [True]},
            {"method": "fast"},
        ],
    )
    def test_mistakes_are_named(self, options: dict[str, object]) -> None:
        arguments = {"reference_T": [0.0, 0.0], "maximise": [True, True]} | options
        with pytest.raises(InputError):
            hypervolume([[1.0, 1.0]], **arguments)


class TestDistances:
    def test_have_the_root_outside_of_which_the_count_divides(self) -> None:
        """sqrt(3² + 4²) / 2, not the mean distance 3.5 and not the root mean square."""
        points = [[3.0, 0.0], [0.0, 4.0]]
        assert generational_distance(points, [[0.0, 0.0]]) == 2.5
        assert inverted_generational_distance([[0.0, 0.0]], points) == 2.5
        assert inverted_generational_distance(points, [[0.0, 0.0]]) == 3.0

    @given(points=FRONTS, reference=FRONTS)
    def test_are_the_obvious_loops(self, points: np.ndarray, reference: np.ndarray) -> None:
        nearest = [min(math.dist(p, r) for r in reference) for p in points]
        assert generational_distance(points, reference) == pytest.approx(math.hypot(*nearest) / len(points))
        back = [min(math.dist(p, r) for p in points) for r in reference]
        assert inverted_generational_distance(points, reference) == pytest.approx(math.hypot(*back) / len(reference))
        lacking = [min(math.hypot(*np.maximum(r - p, 0)) for p in points) for r in reference]
        assert igd_plus(points, reference, maximise=UP) == pytest.approx(np.mean(lacking), abs=1e-12)

    @given(points=FRONTS)
    def test_of_a_front_from_itself_are_zero(self, points: np.ndarray) -> None:
        assert generational_distance(points, points) == 0
        assert inverted_generational_distance(points, points) == 0
        assert igd_plus(points, points, maximise=UP) == 0

    def test_distinguish_convergence_from_coverage(self) -> None:
        whole = front(200, 3)
        assert generational_distance(whole[:3], whole) == 0
        assert inverted_generational_distance(whole[:3], whole) > 0.01

    @given(points=FRONTS, gain=st.floats(0, 0.5))
    def test_igd_plus_never_rewards_getting_worse(self, points: np.ndarray, gain: float) -> None:
        reference = np.ones((1, 3))
        assert igd_plus(points + gain, reference, maximise=UP) <= igd_plus(points, reference, maximise=UP) + 1e-12

    def test_igd_plus_honours_directions(self) -> None:
        assert igd_plus([[1.0, 1.0]], [[0.5, 0.5]], maximise=[True, True]) == 0
        assert igd_plus([[1.0, 1.0]], [[0.5, 0.5]], maximise=[True, False]) == 0.5

    def test_leave_missing_metrics_out(self) -> None:
        assert generational_distance([[3.0, 4.0], [np.nan, 0.0]], [[0.0, 0.0], [np.inf, 0.0]]) == 5

    @pytest.mark.parametrize("other", [np.empty((0, 2)), [[np.nan, 1.0]], [[1.0, 2.0, 3.0]], [1.0, 2.0]])
    def test_refuse_what_cannot_be_compared(self, other: object) -> None:
        with pytest.raises(InputError):
            generational_distance([[1.0, 2.0]], other)
        with pytest.raises(InputError):
            igd_plus(other, [[1.0, 2.0]], maximise=[True, True])


class TestWinRate:
    def rate(self, x: object, y: object, maximise: list[bool], draws: int = 100, seed: int = 0) -> float:
        return win_rate(x, y, maximise=maximise, generator=np.random.default_rng(seed), draws=draws)

    def test_is_the_obvious_count_when_all_points_are_drawn(self) -> None:
        x, y = front(30, 3, seed=1), front(30, 3, seed=2)
        wins = [a[t] > b[t] for a in x for b in y for t in range(3)]
        assert self.rate(x, y, UP, draws=30) == pytest.approx(np.mean(wins))

    def test_draws_without_replacement_when_there_are_enough(self) -> None:
        x, y = np.arange(50.0)[:, None], np.full((50, 1), 24.5)
        assert {self.rate(x, y, [True], draws=50, seed=seed) for seed in range(5)} == {0.5}
        assert len({self.rate(x, y, [True], draws=51, seed=seed) for seed in range(5)}) > 1

    def test_counts_ties_for_neither(self) -> None:
        assert self.rate([[1.0, 2.0]], [[1.0, 1.0]], [True, True]) == 0.5
        assert self.rate([[1.0, 2.0]], [[1.0, 2.0]], [True, True]) == 0

    @settings(max_examples=30)
    @given(x=FRONTS, y=FRONTS, maximise=st.lists(st.booleans(), min_size=3, max_size=3))
    def test_both_sides_share_at_most_one(self, x: np.ndarray, y: np.ndarray, maximise: list[bool]) -> None:
        forth, back = self.rate(x, y, maximise), self.rate(x, y, [not up for up in maximise])
        assert 0 <= forth + back <= 1 + 1e-12

    def test_honours_directions(self) -> None:
        better, worse = [[0.9, 0.1]], [[0.8, 0.2]]
        assert self.rate(better, worse, [True, False]) == 1
        assert self.rate(better, worse, [False, True]) == 0

    def test_is_repeatable(self) -> None:
        x, y = front(200, 3, seed=1), front(150, 3, seed=2)
        assert self.rate(x, y, UP, seed=7) == self.rate(x, y, UP, seed=7) != self.rate(x, y, UP, seed=8)


class TestPreferences:
    def test_are_uniform_on_the_simplex(self) -> None:
        drawn = preferences(4000, 4, generator=np.random.default_rng(0))
        np.testing.assert_allclose(drawn.sum(axis=1), 1)
        np.testing.assert_allclose(drawn.mean(axis=0), 0.25, atol=0.02)
        assert (drawn >= 0).all()

    def test_weighted_sums_are_of_the_real_metrics_of_the_predicted_choice(self) -> None:
        predicted = [[0.9, 0.1], [0.2, 0.8], [0.5, np.nan]]
        real = [[0.5, 0.3], [0.1, 0.9], [1.0, 1.0]]
        sums = preference_weighted_sums(
            predicted, real, preferences_RT=[[1, 0], [0, 1], [0.5, 0.5]], maximise=[True, True]
        )
        np.testing.assert_allclose(sums, [0.5, 0.9, 0.4])

    def test_weighted_sums_count_losses_negatively(self) -> None:
        sums = preference_weighted_sums(
            [[0.9, 5.0], [0.8, 1.0]], [[0.9, 5.0], [0.8, 1.0]], preferences_RT=[[0.5, 0.5]], maximise=[True, False]
        )
        np.testing.assert_allclose(sums, [0.5 * 0.8 - 0.5 * 1.0])

    @pytest.mark.parametrize(
        ("real", "wanted"),
        [([[1.0, 2.0]], [[1.0]]), ([[1.0, 2.0], [1.0, 2.0]], [[1.0, 0.0]]), ([[np.nan, 1.0]], [[1, 0]])],
    )
    def test_mistakes_are_named(self, real: object, wanted: object) -> None:
        with pytest.raises(InputError):
            preference_weighted_sums([[1.0, 2.0]], real, preferences_RT=wanted, maximise=[True, True])


def test_worst_metrics_go_by_direction_and_leave_nan_out() -> None:
    metrics = [[1.0, 0.5], [0.5, np.nan], [0.7, 2.0]]
    assert worst_metrics(metrics, maximise=[True, False]).tolist() == [0.5, 2.0]
    assert worst_metrics(metrics, maximise=[False, True]).tolist() == [1.0, 0.5]
