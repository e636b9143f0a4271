"""Dominance: a strict partial order, mixed directions, and the fast filter against the obvious one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mergecore.errors import InputError
from mergecore.fronts.dominance import non_dominated, to_minimise


def dominates(a: np.ndarray, b: np.ndarray, maximise: list[bool]) -> bool:
    """The definition: nowhere worse, somewhere better."""
    no_worse = all(x >= y if up else x <= y for x, y, up in zip(a, b, maximise, strict=True))
    better = any(x > y if up else x < y for x, y, up in zip(a, b, maximise, strict=True))
    return no_worse and better


def obvious(metrics: np.ndarray, maximise: list[bool]) -> list[bool]:
    mask = []
    for k, row in enumerate(metrics):
        usable = np.isfinite(row).all()
        beaten = any(np.isfinite(other).all() and dominates(other, row, maximise) for other in metrics)
        repeated = any(np.array_equal(other, row) for other in metrics[:k])
        mask.append(bool(usable and not beaten and not repeated))
    return mask


@st.composite
def problems(draw: st.DrawFn, rows: int = 25) -> tuple[np.ndarray, list[bool]]:
    """Few distinct values, so that ties and copies are common; zeros of both signs; missing values."""
    tasks = draw(st.integers(1, 4))
    values = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, np.nan, np.inf, -np.inf]) | st.floats(-1, 1, width=16)
    metrics = draw(arrays(float, st.tuples(st.integers(0, rows), st.just(tasks)), elements=values))
    return metrics, draw(st.lists(st.booleans(), min_size=tasks, max_size=tasks))


@given(problems())
def test_filter_is_the_obvious_one(problem: tuple[np.ndarray, list[bool]]) -> None:
    metrics, maximise = problem
    assert non_dominated(metrics, maximise=maximise).tolist() == obvious(metrics, maximise)


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_filter_is_the_obvious_one_for_many_points(tasks: int) -> None:
    metrics = np.random.default_rng(tasks).normal(size=(150, tasks)).round(1)
    maximise = [t % 2 == 0 for t in range(tasks)]
    assert non_dominated(metrics, maximise=maximise).tolist() == obvious(metrics, maximise)


@given(problems(rows=4))
def test_dominance_is_a_strict_partial_order(problem: tuple[np.ndarray, list[bool]]) -> None:
    """Read off the filter of pairs: never both ways, never of itself, and transitive."""
    metrics, maximise = problem
    metrics = metrics[np.isfinite(metrics).all(axis=1)]

    def beats(i: int, j: int) -> bool:
        # the loser of a pair is the only one missing; of equals the first stays whichever way round they stand
        forth = non_dominated(metrics[[i, j]], maximise=maximise).tolist()
        back = non_dominated(metrics[[j, i]], maximise=maximise).tolist()
        return forth == [True, False] and back == [False, True]

    every = range(len(metrics))
    for i in every:
        assert not beats(i, i)
        for j in every:
            assert not (beats(i, j) and beats(j, i))
            assert beats(i, j) == dominates(metrics[i], metrics[j], maximise)
            for k in every:
                assert beats(i, k) or not (beats(i, j) and beats(j, k))


@given(problems())
def test_the_front_of_the_front_is_the_front(problem: tuple[np.ndarray, list[bool]]) -> None:
    metrics, maximise = problem
    front = metrics[non_dominated(metrics, maximise=maximise)]
    assert non_dominated(front, maximise=maximise).all()
    assert len(front) > 0 or not np.isfinite(metrics).all(axis=1).any()


def test_missing_metrics_do_not_shrink_the_front() -> None:
    metrics = np.array([[np.nan, 9.0], [0.5, 0.5], [np.inf, 9.0], [0.4, 0.6]])
    assert non_dominated(metrics, maximise=[True, True]).tolist() == [False, True, False, True]


def test_of_copies_the_first_is_kept_whatever_the_sign_of_zero() -> None:
    assert non_dominated([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0]], maximise=[True, False]).tolist() == [True, False, False]


def test_costs_change_sign_where_more_is_better() -> None:
    metrics = np.array([[1.0, 2.0], [np.nan, 0.0]])
    costs = to_minimise(metrics, maximise=[True, False])
    np.testing.assert_array_equal(costs, [[-1.0, 2.0], [np.nan, 0.0]])
    assert costs is not metrics
    assert not np.signbit(to_minimise([[0.0]], maximise=[True])).any()


@pytest.mark.parametrize(
    ("metrics", "maximise"), [([1.0, 2.0], [True, True]), ([[1.0, 2.0]], [True]), (np.empty((3, 0)), [])]
)
def test_shapes_must_fit(metrics: object, maximise: list[bool]) -> None:
    with pytest.raises(InputError, match="do not go with"):
        non_dominated(metrics, maximise=maximise)
