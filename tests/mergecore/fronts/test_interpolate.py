"""Coefficients between the points of a front: exact at grid preferences, continuous, never outside the front's hull."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mergecore.fronts.choose import by_preference
from mergecore.fronts.interpolate import interpolated_coefficients, simplex_cell
from mergecore.pareto_moe.rays import simplex_grid


@pytest.fixture
def front() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    angles = generator.uniform(0, np.pi / 2, (40, 2))
    metrics = np.stack(
        [np.cos(angles[:, 0]), np.sin(angles[:, 0]) * np.cos(angles[:, 1]), np.sin(angles).prod(axis=1)], axis=1
    )
    return {"coefficients_PN": generator.uniform(size=(40, 4)), "metrics_PT": metrics}


@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
def test_weights_of_corners_make_the_preference(tasks: int) -> None:
    generator = np.random.default_rng(tasks)
    for alpha in (0.1, 1.0):
        for preference in generator.dirichlet(np.full(tasks, alpha), 200):
            corners, weights = simplex_cell(preference, 20)
            assert len(corners) <= tasks
            assert (weights > 0).all()
            assert (corners >= 0).all()
            np.testing.assert_allclose(corners * 20, np.rint(corners * 20), atol=1e-12)
            np.testing.assert_allclose(corners.sum(axis=1), 1)
            np.testing.assert_allclose(weights @ corners, preference, atol=1e-9)
            assert np.abs(corners - preference).max() <= 1 / 20 + 1e-12


def test_grid_preferences_get_the_point_that_they_prefer(front) -> None:
    for preference in [*simplex_grid(10, 3), np.full(3, 1 / 3)]:
        chosen = by_preference(front["metrics_PT"], weights=preference, maximise=[True] * 3)
        found = interpolated_coefficients(preference, **front, maximise=[True] * 3)
        np.testing.assert_array_equal(found, front["coefficients_PN"][chosen])


def test_two_tasks_are_interpolated_linearly() -> None:
    coefficients = np.array([[0.0, 1.0], [0.5, 0.75], [1.0, 0.0]])
    metrics = np.array([[0.0, 1.0], [0.6, 0.6], [1.0, 0.0]])

    def found(share: float) -> np.ndarray:
        return interpolated_coefficients(
            np.array([share, 1 - share]), coefficients_PN=coefficients, metrics_PT=metrics, maximise=[True, True]
        )

    # the middle point is preferred from 0.4 to 0.6
    np.testing.assert_array_equal(found(0.2), coefficients[0])
    np.testing.assert_array_equal(found(0.5), coefficients[1])
    np.testing.assert_array_equal(found(0.53125), coefficients[1])
    np.testing.assert_allclose(found(0.6125), 0.75 * coefficients[1] + 0.25 * coefficients[2], atol=1e-12)


def test_it_changes_continuously_and_stays_in_the_hull(front) -> None:
    generator = np.random.default_rng(1)
    low, high = front["coefficients_PN"].min(axis=0), front["coefficients_PN"].max(axis=0)
    # a jump of a corner's point is spread over one cell: no faster than all of the box in a step of the grid
    steepest = 2 * 60 * (high - low).max()
    for start, end in itertools.pairwise(generator.dirichlet(np.ones(3), 20)):
        path = start + np.linspace(0, 1, 300)[:, None] * (end - start)
        found = np.array([interpolated_coefficients(r, **front, maximise=[True] * 3) for r in path])
        assert (found >= low - 1e-12).all()
        assert (found <= high + 1e-12).all()
        moved = np.abs(np.diff(found, axis=0)).max(axis=1)
        assert (moved <= steepest * np.abs(np.diff(path, axis=0)).sum(axis=1) + 1e-7).all()


def test_metrics_to_minimise_and_of_other_units_are_chosen_by_as_pick_does() -> None:
    metrics = np.array([[0.9, 300.0], [0.5, 100.0], [0.8, 150.0]])
    found = interpolated_coefficients(
        np.array([0.5, 0.5]), coefficients_PN=np.eye(3), metrics_PT=metrics, maximise=[True, False], scale="range"
    )
    np.testing.assert_array_equal(found, [0, 0, 1])
