"""Rays over the simplex, and what is no preference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergecore.errors import InputError
from mergecore.pareto_moe.rays import checked_preference, rays, simplex_grid


@given(st.integers(1, 80), st.integers(1, 8), st.integers(0, 3))
def test_rays_are_distinct_preferences(count: int, tasks: int, seed: int) -> None:
    found = rays(count, tasks, seed=seed)
    if tasks > 1:
        assert found.shape == (count, tasks)
        assert len(np.unique(found, axis=0)) == count
    for r in found:
        checked_preference(r, tasks)


@pytest.mark.parametrize(("count", "tasks", "steps"), [(11, 2, 10), (66, 3, 10), (10, 3, 3), (2, 2, 1)])
def test_the_papers_counts_are_grids(count: int, tasks: int, steps: int) -> None:
    found = rays(count, tasks, seed=0)
    np.testing.assert_array_equal(found, simplex_grid(steps, tasks))
    np.testing.assert_allclose(found * steps, np.round(found * steps), atol=1e-12)
    assert {tuple(row) for row in np.eye(tasks)} <= {tuple(row) for row in found}


def test_many_tasks_begin_with_the_equal_and_the_unit_preferences() -> None:
    found = rays(20, 8, seed=0)
    np.testing.assert_array_equal(found[0], np.full(8, 1 / 8))
    np.testing.assert_array_equal(found[1:9], np.eye(8))
    assert not np.array_equal(rays(20, 8, seed=1), found)


@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ([0.5, 0.4], "sum to 0.9, not to 1"),
        ([1.2, -0.2], "negative or not finite"),
        ([np.nan, 1.0], "negative or not finite"),
        ([1.0], "shape [1] for 2 tasks"),
        ([[0.5, 0.5]], "shape [1, 2] for 2 tasks"),
    ],
)
def test_what_is_no_preference_is_refused(preference: list, message: str) -> None:
    with pytest.raises(InputError) as error:
        checked_preference(preference, 2)
    assert message in str(error.value)
