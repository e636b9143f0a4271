"""One point of a front: by preference, by constraints, the knee."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mergecore.errors import InputError
from mergecore.fronts.choose import by_constraints, by_preference, knee

FRONT = np.array([[0.9, 0.1], [0.8, 0.6], [0.5, 0.7], [0.1, 0.9]])
UP = [True, True]
METRICS = arrays(float, st.tuples(st.integers(1, 15), st.just(3)), elements=st.floats(-5, 5, width=16))
DIRECTIONS = st.lists(st.booleans(), min_size=3, max_size=3)


class TestPreference:
    @pytest.mark.parametrize(("weights", "row"), [([1, 0], 0), ([0, 1], 3), ([0.5, 0.5], 1), ([7, 7], 1), ([1, 4], 3)])
    def test_maximises_the_weighted_sum(self, weights: list[float], row: int) -> None:
        assert by_preference(FRONT, weights=weights, maximise=UP) == row

    @given(metrics=METRICS, maximise=DIRECTIONS, weights=st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
    def test_is_the_obvious_loop(self, metrics: np.ndarray, maximise: list[bool], weights: list[float]) -> None:
        def worth(row: np.ndarray) -> float:
            return sum(w * (m if up else -m) for w, m, up in zip(weights, row, maximise, strict=True))

        chosen = by_preference(metrics, weights=weights, maximise=maximise)
        assert worth(metrics[chosen]) == pytest.approx(max(map(worth, metrics)), abs=1e-12)

    def test_range_scaling_makes_units_not_matter(self) -> None:
        percent = FRONT * [100, 1]
        assert by_preference(percent, weights=[0.2, 0.8], maximise=UP) == 0
        assert by_preference(percent, weights=[0.2, 0.8], maximise=UP, scale="range") == by_preference(
            FRONT, weights=[0.2, 0.8], maximise=UP, scale="range"
        )

    def test_range_scaling_of_a_constant_objective(self) -> None:
        assert by_preference([[1.0, 0.2], [1.0, 0.3]], weights=[1, 1], maximise=UP, scale="range") == 1

    def test_incomplete_rows_are_never_chosen(self) -> None:
        metrics = np.array([[np.nan, 9.0], [0.1, 0.2], [np.inf, 9.0]])
        assert by_preference(metrics, weights=[1, 1], maximise=UP) == 1

    def test_of_equals_the_first(self) -> None:
        assert by_preference([[0.5, 0.5], [0.6, 0.4], [0.5, 0.5]], weights=[1, 1], maximise=UP) == 0

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"weights": [1, -1]}, "weights of zero or more"),
            ({"weights": [1, np.nan]}, "weights of zero or more"),
            ({"weights": [1]}, "not 2 weights"),
            ({"weights": [0, 0]}, "zero"),
            ({"scale": "rank"}, "Unknown scale"),
            ({"maximise": [True]}, "do not go with"),
        ],
    )
    def test_mistakes_are_named(self, options: dict[str, object], said: str) -> None:
        with pytest.raises(InputError, match=said):
            by_preference(FRONT, **({"weights": [1, 1], "maximise": UP} | options))


class TestConstraints:
    def test_gives_the_best_of_those_that_meet_them(self) -> None:
        assert by_constraints(FRONT, at_least={1: 0.55}, best=0, maximise=UP) == 1
        assert by_constraints(FRONT, at_least={1: 0.65}, best=0, maximise=UP) == 2
        assert by_constraints(FRONT, at_least={}, best=1, maximise=UP) == 3
        assert by_constraints(FRONT, at_least={0: 0.8}, best=0, maximise=UP) == 0

    def test_a_metric_to_minimise_must_not_exceed_its_bound(self) -> None:
        losses = FRONT * [1, -1] + [0, 1]  # 0.9, 0.4, 0.3, 0.1
        assert by_constraints(losses, at_least={1: 0.35}, best=0, maximise=[True, False]) == 2

    def test_a_bound_that_is_met_exactly_is_met(self) -> None:
        assert by_constraints(FRONT, at_least={1: 0.7}, best=0, maximise=UP) == 2

    @given(metrics=METRICS, maximise=DIRECTIONS, bound=st.floats(-5, 5, width=16))
    def test_is_the_obvious_loop(self, metrics: np.ndarray, maximise: list[bool], bound: float) -> None:
        feasible = [row for row in metrics if (row[1] >= bound if maximise[1] else row[1] <= bound)]
        if not feasible:
            with pytest.raises(InputError):
                by_constraints(metrics, at_least={1: bound}, best=0, maximise=maximise)
            return
        chosen = metrics[by_constraints(metrics, at_least={1: bound}, best=0, maximise=maximise)]
        assert chosen[1] >= bound if maximise[1] else chosen[1] <= bound
        assert chosen[0] == (max if maximise[0] else min)(row[0] for row in feasible)

    def test_of_equals_the_better_elsewhere(self) -> None:
        assert by_constraints([[0.5, 0.1], [0.5, 0.3]], at_least={}, best=0, maximise=UP) == 1

    def test_says_what_is_reachable(self) -> None:
        with pytest.raises(InputError, match=r"0\.9 on objective 1\.$"):
            by_constraints(FRONT, at_least={1: 0.95}, best=0, maximise=UP)

    def test_says_what_is_reachable_together(self) -> None:
        """Each is reachable alone; with the first met, the second reaches 0.6, and the other way round 0.5."""
        with pytest.raises(InputError) as caught:
            by_constraints(FRONT, at_least={0: 0.7, 1: 0.65}, best=0, maximise=UP)
        assert "0.5 on objective 0 with the others met; 0.6 on objective 1 with the others met" in str(caught.value)

    def test_says_what_is_reachable_alone_when_nothing_is_together(self) -> None:
        with pytest.raises(InputError) as caught:
            by_constraints(FRONT, at_least={0: 2.0, 1: 3.0}, best=0, maximise=UP)
        assert "0.9 on objective 0; 0.9 on objective 1" in str(caught.value)

    @pytest.mark.parametrize("options", [{"best": 2}, {"best": -1}, {"at_least": {5: 0.1}}])
    def test_objectives_must_exist(self, options: dict[str, object]) -> None:
        with pytest.raises(InputError, match="no objective"):
            by_constraints(FRONT, **({"at_least": {}, "best": 0, "maximise": UP} | options))

    def test_incomplete_rows_are_never_chosen(self) -> None:
        assert by_constraints([[np.nan, 0.9], [0.1, 0.6]], at_least={1: 0.5}, best=0, maximise=UP) == 1


class TestKnee:
    def test_is_nearest_to_the_ideal(self) -> None:
        assert knee(FRONT, maximise=UP) == 1

    def test_is_where_the_front_bends(self) -> None:
        x = np.linspace(0, 1, 101)
        bend = np.minimum(1 - 0.2 * x, 5 * (1 - x))  # slopes -0.2 and -5 meet at x = 5/6
        assert x[knee(np.column_stack([x, bend]), maximise=UP)] == pytest.approx(5 / 6, abs=0.02)

    @given(metrics=METRICS, maximise=DIRECTIONS, scale=st.sampled_from([0.25, 4.0, 1024.0]))
    def test_does_not_depend_on_units(self, metrics: np.ndarray, maximise: list[bool], scale: float) -> None:
        assert knee(metrics, maximise=maximise) == knee(metrics * [scale, 1, 1], maximise=maximise)

    def test_honours_directions(self) -> None:
        assert knee(FRONT * [1, -1], maximise=[True, False]) == 1

    def test_of_one_point_and_of_constant_objectives(self) -> None:
        assert knee([[0.3, 0.4]], maximise=UP) == 0
        assert knee([[0.3, 0.4], [0.3, 0.5]], maximise=UP) == 1

    def test_of_nothing_is_an_error(self) -> None:
        for metrics in (np.empty((0, 2)), [[np.nan, 1.0]]):
            with pytest.raises(InputError, match="has all its metrics"):
                knee(metrics, maximise=UP)
