"""Points that stand for a front: the ends, the compromise, then the farthest apart."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore.fronts.spread import farthest_first, spread_points

ARC = np.column_stack([np.cos(np.linspace(0, np.pi / 2, 101)), np.sin(np.linspace(0, np.pi / 2, 101))])


def test_ends_then_compromise_then_gaps() -> None:
    chosen = spread_points(ARC, 5, maximise=[True, True])
    assert chosen[:3].tolist() == [0, 100, 50]
    assert sorted(chosen[3:].tolist()) == [25, 75]


def test_direction_of_each_objective_counts() -> None:
    costs = ARC * [1, -1]
    assert spread_points(costs, 2, maximise=[True, False]).tolist() == [0, 100]


def test_few_points_none_and_nan() -> None:
    assert spread_points(ARC, 0, maximise=[True, True]).size == 0
    assert spread_points(np.full((3, 2), np.nan), 2, maximise=[True, True]).size == 0
    some = ARC.copy()
    some[0] = np.nan
    assert 0 not in spread_points(some, 101, maximise=[True, True])
    assert spread_points(np.ones((4, 2)), 2, maximise=[True, True]).size == 2


@given(seed=st.integers(0, 1000), count=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_distinct_and_as_many_as_asked(seed: int, count: int) -> None:
    points = np.random.default_rng(seed).random((10, 3))
    chosen = spread_points(points, count, maximise=[True, False, True])
    assert len(set(chosen.tolist())) == len(chosen) == min(count, 10)


@given(st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_farthest_first_is_the_slow_twin(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, there = rng.random((12, 3)), rng.random((4, 3))
    nearest = ((points[:, None] - there) ** 2).sum(axis=2).min(axis=1)
    expected: list[int] = []
    for _ in range(count):
        gaps = [
            min(np.linalg.norm(p - q) for q in [*there, *points[expected]]) if i not in expected else -1.0
            for i, p in enumerate(points)
        ]
        expected.append(int(np.argmax(gaps)))
    assert farthest_first(points, nearest, count).tolist() == expected
