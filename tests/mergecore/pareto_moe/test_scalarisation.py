"""Weights of the tasks' losses, against programmes that are solved in other ways, and on problems with known fronts."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mergecore.errors import NumericalError
from mergecore.pareto_moe.scalarisation import (
    BALANCED,
    SCALARISATIONS,
    ExactPareto,
    exact_pareto_weights,
    min_norm_weights,
    non_uniformity,
)

seeds = st.integers(0, 10_000)


def problem(seed: int, tasks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses, a preference, and inner products of random gradients, of which some oppose each other."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(tasks, rng.integers(1, 6)))
    return rng.uniform(0.05, 3, tasks), rng.dirichlet(np.ones(tasks)), gradients @ gradients.T


def programme(losses: np.ndarray, r: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Objective to maximise, rows and lower bounds of the authors' programme, written out again."""
    rl = r * losses
    hat = rl / rl.sum()
    mu = sum(h * np.log(h * len(hat)) for h in hat if h > 0)
    a = np.array([ri * (np.log(h * len(hat)) - mu) if h > 0 else 0.0 for ri, h in zip(r, hat, strict=True)])
    c = gram / np.abs(gram).max()
    ca = c @ a
    if mu > BALANCED:
        if any(ca > 0):
            keep = [t for t in range(len(r)) if ca[t] <= 0 or rl[t] == rl.max()]
            bounds = [0.0 if rl[t] == rl.max() else ca[t] for t in keep]
            return ca, c[keep], np.array(bounds)
        return ca, c, np.zeros(len(r))
    return c.sum(axis=0), np.vstack([c, ca]), np.append(np.zeros(len(r)), -max(0.0, -ca.max()))


def best_vertex(gain: np.ndarray, rows: np.ndarray, low: np.ndarray) -> float | None:
    """The programme's optimum by enumeration of all vertices of its polytope; None where it is empty."""
    tasks = len(gain)
    planes = [(row, bound) for row, bound in zip(rows, low, strict=True)]
    planes += [(np.eye(tasks)[t], 0.0) for t in range(tasks)]
    found = []
    for chosen in itertools.combinations(planes, tasks - 1):
        system = np.vstack([np.ones(tasks), *(row for row, _ in chosen)])
        if abs(np.linalg.det(system)) < 1e-12:
            continue
        alpha = np.linalg.solve(system, np.array([1.0, *(bound for _, bound in chosen)]))
        if (alpha >= -1e-9).all() and (rows @ alpha >= low - 1e-9).all():
            found.append(float(gain @ alpha))
    return max(found, default=None)


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("seed", range(24))
def test_exact_pareto_weights_are_the_best_vertex(tasks: int, seed: int) -> None:
    losses, r, gram = problem(seed, tasks)
    if seed % 4 == 0:
        losses = 1 / r  # balanced: the descent
    gain, rows, low = programme(losses, r, gram)
    expected, found = best_vertex(gain, rows, low), exact_pareto_weights(losses, r, gram)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    assert (rows @ found >= low - 1e-6).all()
    assert gain @ found == pytest.approx(expected, abs=1e-6)


def test_without_a_solution_linear_scalarisation_stands_in_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergecore.pareto_moe.scalarisation.exact_pareto_weights", lambda *args: None)
    rule = ExactPareto()
    losses, r, gram = problem(0, 3)
    with pytest.warns(UserWarning, match="linear scalarisation stands in"):
        np.testing.assert_array_equal(rule.weights(losses, r, gram), r)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule.weights(losses, r, gram)
    assert rule.fallbacks == 2


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 6), st.sampled_from(list(SCALARISATIONS)))
def test_weights_are_on_the_simplex(seed: int, tasks: int, name: str) -> None:
    found = SCALARISATIONS.get(name)().weights(*problem(seed, tasks))
    assert found.shape == (tasks,)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 6))
def test_min_norm_weights_are_those_of_a_quadratic_programme(seed: int, tasks: int) -> None:
    _, _, gram = problem(seed, tasks)
    found = min_norm_weights(gram)
    starts = [np.full(tasks, 1 / tasks), *np.eye(tasks)]
    solved = [
        minimize(
            lambda w: w @ gram @ w,
            start,
            jac=lambda w: 2 * gram @ w,
            bounds=[(0, 1)] * tasks,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(tasks)},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        ).fun
        for start in starts
    ]
    scale = np.abs(gram).max()
    assert found @ gram @ found <= min(solved) + 1e-6 * scale


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(2, 12), st.sampled_from(["equal", "nearly equal", "lengths", "opposed"]))
def test_min_norm_weights_of_difficult_gradients(seed: int, tasks: int, kind: str) -> None:
    """No task falls short of the common descent: (G w)_t >= wᵀ G w for every t, which only the optimum has."""
    random = np.random.default_rng(seed)
    gradients = random.normal(size=(random.integers(1, tasks + 3), tasks))
    if kind == "equal":
        gradients[:] = gradients[:, :1]
    if kind == "nearly equal":
        gradients[:] = gradients[:, :1] + 1e-9 * gradients
    if kind == "lengths":
        gradients *= 10 ** random.uniform(-8, 8, size=tasks)
    if kind == "opposed":
        gradients[:, 0] = -gradients[:, 1:].sum(axis=1)
    gram = gradients.T @ gradients
    w = min_norm_weights(gram)
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1)
    assert w @ gram @ w - (gram @ w).min() <= 1e-12 * np.abs(gram).max()


def test_min_norm_of_two_is_the_closed_form() -> None:
    one, two = np.array([2.0, 0.0]), np.array([0.0, 1.0])
    gram = np.array([[one @ one, one @ two], [two @ one, two @ two]])
    np.testing.assert_allclose(min_norm_weights(gram), [0.2, 0.8], atol=1e-9)
    np.testing.assert_allclose(min_norm_weights(np.array([[1.0, 2.0], [2.0, 4.0]])), [1.0, 0.0])


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(1, 6))
def test_non_uniformity_is_zero_only_where_losses_follow_the_preference(seed: int, tasks: int) -> None:
    losses, r, _ = problem(seed, tasks)
    assert non_uniformity(1 / r, r) == pytest.approx(0, abs=1e-9)
    assert non_uniformity(losses, r) >= -1e-12


def test_zero_preferences_and_losses_are_allowed() -> None:
    _, _, gram = problem(3, 3)
    for losses, r in (([1.0, 2.0, 0.5], [0.0, 0.4, 0.6]), ([0.0, 2.0, 0.5], [0.3, 0.3, 0.4]), ([0.0] * 3, [1 / 3] * 3)):
        found = ExactPareto().weights(np.array(losses), np.array(r), gram)
        assert np.isfinite(found).all()
        assert np.isfinite(non_uniformity(np.array(losses), np.array(r)))


@pytest.mark.parametrize("name", list(SCALARISATIONS))
def test_what_is_not_finite_is_refused(name: str) -> None:
    losses, r, gram = problem(0, 2)
    with pytest.raises(NumericalError):
        SCALARISATIONS.get(name)().weights(losses * np.nan, r, gram * np.nan)


def test_negative_losses_have_no_proportions() -> None:
    losses, r, gram = problem(0, 2)
    with pytest.raises(NumericalError, match="negative"):
        ExactPareto().weights(-losses, r, gram)


def descend(loss_and_gradient, x: np.ndarray, r: np.ndarray, name: str, steps: int, rate: float) -> np.ndarray:
    rule = SCALARISATIONS.get(name)()
    for _ in range(steps):
        losses, gradients = loss_and_gradient(x)
        x = x - rate * rule.weights(losses, r, gradients @ gradients.T) @ gradients
    return loss_and_gradient(x)[0]


@pytest.mark.parametrize("first", [0.3, 0.4, 0.5, 0.6, 0.7])
def test_exact_search_ends_on_the_ray_of_a_convex_problem(first: float) -> None:
    """l_t = 0.2 + |x - a_t|²: on the segment between the two corners r_1 l_1 = r_2 l_2 has one solution."""
    corners, r = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([first, 1 - first])

    def measure(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 0.2 + ((x - corners) ** 2).sum(axis=1), 2 * (x - corners)

    found = descend(measure, np.array([0.9, -0.4]), r, "epo", 4000, 0.01)
    shares = np.linspace(0, 1, 20_001)
    front = 0.2 + 2 * np.column_stack([shares**2, (1 - shares) ** 2])
    expected = front[np.abs(front[:, 0] * r[0] - front[:, 1] * r[1]).argmin()]
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_exact_search_finds_what_linear_scalarisation_cannot() -> None:
    """The concave front of Lin et al. 2019: weights end in a corner, exact search on the ray."""
    corner, r = np.full(4, 0.5), np.array([0.5, 0.5])

    def measure(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gaps = np.array([x - corner, x + corner])
        falls = np.exp(-(gaps**2).sum(axis=1))
        return 1 - falls, 2 * gaps * falls[:, None]

    start = np.array([0.3, 0.2, 0.4, 0.1])
    linear = descend(measure, start, r, "ls", 3000, 0.05)
    exact = descend(measure, start, r, "epo", 3000, 0.05)
    assert linear.min() < 0.05 < 0.8 < linear.max()
    assert abs(exact[0] - exact[1]) < 0.02
    assert exact.max() < 0.66  # 1 - exp(-1) at the middle of the front
