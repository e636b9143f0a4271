"""The quadratic surrogate: exact recovery, agreement with independent solvers, honest R², and bad data."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import least_squares

from mergecore.errors import InputError
from mergecore.sampling import sample
from mergecore.surrogates import QuadraticSurrogate, fit_quadratic
from mergecore.surrogates.least_squares import Basis, _leverage, parameter_count, solve
from mergecore.surrogates.links import Link
from mergecore.surrogates.quadratic import r_squared, stack_quadratics

Bounds = tuple[float | None, float | None]
BOUNDS: dict[str, Bounds] = {
    "identity": (None, None),
    "sigmoid": (0.0, 1.0),
    "softplus": (0.5, None),
    "mirrored": (None, 3.0),
}


def quadratic(
    models: int, *, seed: int, bounds: tuple[float | None, float | None] = (None, None)
) -> QuadraticSurrogate:
    """A random surrogate with q of order one on [0, 1]^N."""
    generator = np.random.default_rng(seed)
    A = generator.normal(size=(models, models)) / models
    return QuadraticSurrogate(generator.normal(), generator.normal(size=models), A + A.T, *bounds)


def points(models: int, count: int, *, seed: int = 0, box: tuple[float, float] = (0, 1)) -> np.ndarray:
    return sample("sobol", count, box=[box] * models, seed=seed, anchors=False)


def noisy(models: int, count: int, kind: str, noise: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    truth = quadratic(models, seed=seed, bounds=BOUNDS[kind])
    c = points(models, count, seed=seed)
    return c, truth.predict(c) + noise * np.random.default_rng(seed).normal(size=count)


def monomials(c: np.ndarray) -> np.ndarray:
    """The slow, obvious design matrix: 1, c_i, c_i c_j for i <= j."""
    models = c.shape[1]
    columns = [np.ones(len(c)), *c.T, *(c[:, i] * c[:, j] for i in range(models) for j in range(i, models))]
    return np.stack(columns, axis=1)


class TestSurrogate:
    def test_predicts_the_formula(self) -> None:
        surrogate = QuadraticSurrogate(1.0, [2.0, 3.0], [[4.0, 1.0], [1.0, -2.0]])
        # 1 + 2*1 + 3*2 + (4*1 + 2*1*1*2 - 2*4) / 2
        assert surrogate.predict([[1.0, 2.0]]).tolist() == [9.0]

    @pytest.mark.parametrize("kind", BOUNDS)
    def test_is_the_link_of_q_row_by_row(self, kind: str) -> None:
        lower, upper = BOUNDS[kind]
        surrogate = quadratic(4, seed=3, bounds=(lower, upper))
        c = points(4, 20, box=(-1, 2))
        q = np.array([surrogate.e + surrogate.b_N @ row + 0.5 * row @ surrogate.A_NN @ row for row in c])
        np.testing.assert_allclose(surrogate.predict(c), Link(lower, upper).value(q), rtol=1e-13)

    def test_nothing_gives_nothing_and_nan_gives_nan(self) -> None:
        surrogate = quadratic(2, seed=0, bounds=(0, 1))
        assert surrogate.predict(np.empty((0, 2))).shape == (0,)
        assert np.isnan(surrogate.predict([[np.nan, 0.0], [0.0, 0.0]])).tolist() == [True, False]

    @pytest.mark.parametrize("bounds", [(None, None), (0, 1), (-0.1, None), (None, 7), (-math.inf, math.inf)])
    def test_survives_json_to_the_bit(self, bounds: Bounds) -> None:
        surrogate = quadratic(3, seed=9, bounds=bounds)
        data = json.loads(json.dumps(surrogate.to_dict(), allow_nan=False))
        restored = QuadraticSurrogate.from_dict(data | {"held_out_r2": 0.9})
        assert (restored.e, restored.lower, restored.upper) == (surrogate.e, surrogate.lower, surrogate.upper)
        assert np.array_equal(restored.b_N, surrogate.b_N)
        assert np.array_equal(restored.A_NN, surrogate.A_NN)
        c = points(3, 50)
        assert np.array_equal(restored.predict(c), surrogate.predict(c))

    def test_refuses_a_damaged_file(self) -> None:
        data = quadratic(2, seed=0, bounds=(0, 1)).to_dict()
        with pytest.raises(InputError, match="lacks 'A'"):
            QuadraticSurrogate.from_dict({key: value for key, value in data.items() if key != "A"})
        with pytest.raises(InputError, match="softplus"):
            QuadraticSurrogate.from_dict(data | {"link": "softplus"})

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"A_NN": [[1.0, 2.0], [3.0, 4.0]]}, "symmetric"),
            ({"A_NN": [[1.0]]}, "symmetric"),
            ({"b_N": [[1.0, 2.0]]}, "no quadratic"),
            ({"e": math.nan}, "finite"),
            ({"b_N": [math.inf, 0.0]}, "finite"),
            ({"lower": 1.0, "upper": 0.0}, "cannot range"),
        ],
    )
    def test_refuses_what_is_no_quadratic(self, values: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            QuadraticSurrogate(**({"e": 0.0, "b_N": [1.0, 2.0], "A_NN": np.eye(2)} | values))

    def test_cannot_be_changed_from_outside(self) -> None:
        b = np.ones(2)
        surrogate = QuadraticSurrogate(0.0, b, np.eye(2))
        b[0] = 5
        assert surrogate.b_N[0] == 1
        with pytest.raises(ValueError, match="read-only"):
            surrogate.A_NN[0, 0] = 2

    def test_refuses_coefficients_of_other_models(self) -> None:
        with pytest.raises(InputError, match=r"\[K, 2\]"):
            quadratic(2, seed=0).predict(np.zeros((4, 3)))

    def test_stack_predicts_each_surrogate(self) -> None:
        surrogates = [quadratic(5, seed=t, bounds=bounds) for t, bounds in enumerate([*BOUNDS.values(), (0.0, 1.0)])]
        c = points(5, 33)
        one_by_one = np.stack([s.predict(c) for s in surrogates], axis=1)
        np.testing.assert_allclose(stack_quadratics(surrogates)(c), one_by_one, rtol=1e-13, atol=1e-15)


class TestRecovery:
    @pytest.mark.parametrize("models", range(1, 9))
    @pytest.mark.parametrize("kind", BOUNDS)
    def test_from_exactly_p_points(self, models: int, kind: str) -> None:
        truth = quadratic(models, seed=models, bounds=BOUNDS[kind])
        c = points(models, parameter_count(models), seed=models)
        fit = fit_quadratic(c, truth.predict(c), lower=truth.lower, upper=truth.upper)
        tolerance = 1e-8 if kind == "identity" else 1e-5
        np.testing.assert_allclose(fit.surrogate.A_NN, truth.A_NN, atol=tolerance)
        np.testing.assert_allclose(fit.surrogate.b_N, truth.b_N, atol=tolerance)
        assert fit.surrogate.e == pytest.approx(truth.e, abs=tolerance)
        assert fit.ridge == 0

    @pytest.mark.parametrize("box", [(-1, 2), (0, 1e-3), (100, 101), (-5, -4.9)])
    @pytest.mark.parametrize("kind", ["identity", "sigmoid"])
    def test_in_any_box(self, box: tuple[float, float], kind: str) -> None:
        """The quadratic is random in the box's own units, so that its size there is of order one."""
        unit = quadratic(3, seed=1, bounds=BOUNDS[kind])
        c = points(3, 14, box=box)
        z = (c - box[0]) / (box[1] - box[0])
        fit = fit_quadratic(c, unit.predict(z), lower=unit.lower, upper=unit.upper)
        fresh = points(3, 64, seed=5, box=box)
        expected = unit.predict((fresh - box[0]) / (box[1] - box[0]))
        # e, b and A refer to c = 0; far from a narrow box they are large and cancel
        lost = 1e-15 * (max(map(abs, box)) / (box[1] - box[0])) ** 2
        np.testing.assert_allclose(fit.surrogate.predict(fresh), expected, atol=1e-10 + 100 * lost)

    def test_does_not_depend_on_the_order_of_evaluations(self) -> None:
        c, m = noisy(3, 30, "sigmoid", 0.01, seed=1)
        order = np.random.default_rng(0).permutation(30)
        one, other = fit_quadratic(c, m, lower=0, upper=1), fit_quadratic(c[order], m[order], lower=0, upper=1)
        np.testing.assert_allclose(other.surrogate.A_NN, one.surrogate.A_NN, rtol=1e-5, atol=1e-6)
        assert other.press_r2 == pytest.approx(one.press_r2, abs=1e-7)

    def test_is_the_same_to_the_bit_every_time(self) -> None:
        c, m = noisy(3, 30, "sigmoid", 0.01, seed=1)
        one, same = (fit_quadratic(c, m, lower=0, upper=1) for _ in range(2))
        assert one.to_dict() == same.to_dict()


class TestAgainstIndependentSolvers:
    @pytest.mark.parametrize("models", [1, 2, 5, 8])
    def test_identity_is_ordinary_least_squares(self, models: int) -> None:
        c, m = noisy(models, 2 * parameter_count(models), "identity", 0.3, seed=models)
        fit = fit_quadratic(c, m, ridges=[0.0])
        solution, *_ = np.linalg.lstsq(monomials(c), m, rcond=None)
        np.testing.assert_allclose(fit.surrogate.predict(c), monomials(c) @ solution, atol=1e-10)
        assert fit.surrogate.e == pytest.approx(solution[0], abs=1e-9)
        np.testing.assert_allclose(fit.surrogate.b_N, solution[1 : models + 1], atol=1e-8)

    @pytest.mark.parametrize("kind", ["sigmoid", "softplus", "mirrored"])
    @pytest.mark.parametrize("models", [1, 3])
    def test_links_minimise_the_squared_error_of_the_metric(self, kind: str, models: int) -> None:
        lower, upper = BOUNDS[kind]
        c, m = noisy(models, 4 * parameter_count(models), kind, 0.05, seed=models)
        fit = fit_quadratic(c, m, lower=lower, upper=upper, ridges=[0.0])
        X, link = monomials(c), Link(lower, upper)
        other = least_squares(lambda beta: link.value(X @ beta) - m, np.zeros(X.shape[1]), xtol=1e-14, ftol=1e-14)
        ours = ((fit.surrogate.predict(c) - m) ** 2).sum()
        assert ours == pytest.approx(2 * other.cost, rel=1e-9)
        np.testing.assert_allclose(fit.surrogate.predict(c), link.value(X @ other.x), atol=1e-5)

    @pytest.mark.parametrize("kind", ["identity", "sigmoid"])
    def test_ridge_minimises_the_penalised_error(self, kind: str) -> None:
        c, m = noisy(2, 20, kind, 0.1, seed=3)
        link, X = Link(*BOUNDS[kind]), Basis.over(c).design(c)
        penalty = np.sqrt(20 * 0.01) * np.eye(6)[1:]
        other = least_squares(
            lambda beta: np.concatenate([link.value(X @ beta) - m, penalty @ beta]), np.zeros(6), xtol=1e-14, ftol=1e-14
        )
        np.testing.assert_allclose(solve(X, m, link, [0.01]).beta_p, other.x, atol=1e-5)

    def test_basis_is_orthonormal_over_the_box(self) -> None:
        c = points(3, 4096, box=(-2, 5))
        X = Basis.over(c).design(c)
        np.testing.assert_allclose(X.T @ X / len(c), np.eye(10), atol=0.02)

    def test_basis_converts_back_to_the_coefficients(self) -> None:
        c = points(3, 20, box=(1, 3))
        basis, beta = Basis.over(c), np.random.default_rng(0).normal(size=10)
        surrogate = QuadraticSurrogate(*basis.to_coefficients(beta))
        np.testing.assert_allclose(surrogate.predict(c), basis.design(c) @ beta, atol=1e-12)


class TestLeaveOneOut:
    @pytest.mark.parametrize("models", [1, 2, 4])
    def test_press_is_brute_force_for_the_identity(self, models: int) -> None:
        c, m = noisy(models, 2 * parameter_count(models), "identity", 0.5, seed=models)
        fit = fit_quadratic(c, m, ridges=[0.0])
        left_out = [
            fit_quadratic(np.delete(c, k, 0), np.delete(m, k), ridges=[0.0]).surrogate.predict(c[k : k + 1])[0]
            for k in range(len(m))
        ]
        assert fit.press_r2 == pytest.approx(r_squared(m, np.array(left_out)), abs=1e-10)

    def test_press_is_brute_force_with_a_ridge(self) -> None:
        c, m = noisy(3, 25, "identity", 0.5, seed=1)
        X, count = Basis.over(c).design(c), len(m)
        found = solve(X, m, Link(), [0.02])
        for k in range(count):
            rest = np.arange(count) != k
            # the same absolute penalty, K * ridge, on one evaluation less
            beta = solve(X[rest], m[rest], Link(), [0.02 * count / (count - 1)]).beta_p
            assert m[k] - X[k] @ beta == pytest.approx(found.left_out_residual_K[k], abs=1e-10)

    @pytest.mark.parametrize("kind", ["sigmoid", "softplus"])
    def test_press_is_close_to_brute_force_for_links(self, kind: str) -> None:
        """One Newton step from the fit: the error is of second order in what one evaluation moves, here some 1 %."""
        lower, upper = BOUNDS[kind]
        c, m = noisy(3, 60, kind, 0.03, seed=2)
        fit = fit_quadratic(c, m, lower=lower, upper=upper, ridges=[0.0])
        left_out = np.array(
            [
                fit_quadratic(
                    np.delete(c, k, 0), np.delete(m, k), lower=lower, upper=upper, ridges=[0.0]
                ).surrogate.predict(c[k : k + 1])[0]
                for k in range(len(m))
            ]
        )
        assert fit.press_r2 < fit.train_r2
        unexplained = 1 - r_squared(m, left_out)
        assert 1 - fit.press_r2 == pytest.approx(unexplained, rel=0.05)

    @pytest.mark.parametrize("collinear", [False, True])
    @pytest.mark.parametrize("penalty", [0.0, 0.3])
    def test_leverage_is_the_diagonal_of_the_hat_matrix(self, collinear: bool, penalty: float) -> None:
        """Of full rank and, by a repeated column, of a lower one."""
        J = np.random.default_rng(0).normal(size=(12, 4))
        if collinear:
            J[:, 3] = J[:, 1]
        hat = J @ np.linalg.pinv(J.T @ J + penalty * np.diag([0.0, 1.0, 1.0, 1.0])) @ J.T
        np.testing.assert_allclose(_leverage(J, penalty), np.diag(hat), atol=1e-10)

    @pytest.mark.parametrize("kind", BOUNDS)
    def test_press_is_undefined_where_every_point_is_needed(self, kind: str) -> None:
        c, m = noisy(2, 6, kind, 0.1, seed=0)
        fit = fit_quadratic(c, m, lower=BOUNDS[kind][0], upper=BOUNDS[kind][1])
        assert math.isnan(fit.press_r2)
        assert fit.train_r2 == pytest.approx(1, abs=1e-6)
        assert math.isnan(fit.noise)
        assert "passes through every point" in fit.warnings[0]


class TestHeldOut:
    def test_no_prediction_has_seen_its_evaluation(self) -> None:
        """Moving one metric must not move its own out-of-fold prediction, but moves others."""
        c, m = noisy(2, 30, "identity", 0.1, seed=0)
        before = fit_quadratic(c, m).out_of_fold
        m[7] += 100
        after = fit_quadratic(c, m).out_of_fold
        assert after[7] == before[7]
        assert (after != before).sum() > 15

    def test_copies_of_one_candidate_share_a_fold(self) -> None:
        """Otherwise a fit would be tested on points that it was fitted to: here noise by candidate, twice the same."""
        c = np.repeat(points(2, 12), 2, axis=0)
        m = np.repeat(np.random.default_rng(0).normal(size=12), 2)
        fit = fit_quadratic(c, m, ridges=[0.0])
        m[4] += 100
        moved = fit_quadratic(c, m, ridges=[0.0]).out_of_fold
        assert moved[4] == fit.out_of_fold[4]
        assert moved[5] == fit.out_of_fold[5]

    @pytest.mark.parametrize("kind", BOUNDS)
    def test_estimates_the_r2_on_fresh_points(self, kind: str) -> None:
        lower, upper = BOUNDS[kind]
        truth = quadratic(4, seed=4, bounds=(lower, upper))
        noise = 0.3 * truth.predict(points(4, 200)).std()
        c, m = noisy(4, 80, kind, noise, seed=4)
        fit = fit_quadratic(c, m, lower=lower, upper=upper)
        fresh = points(4, 2000, seed=77)
        real = truth.predict(fresh) + noise * np.random.default_rng(1).normal(size=2000)
        honest = r_squared(real, fit.surrogate.predict(fresh))
        assert fit.cross_validated_r2 == pytest.approx(honest, abs=0.08)
        assert fit.press_r2 == pytest.approx(honest, abs=0.08)
        assert fit.train_r2 > fit.press_r2 > fit.cross_validated_r2 - 0.05

    def test_pure_noise_has_no_held_out_r2(self) -> None:
        c = points(3, 40)
        fit = fit_quadratic(c, np.random.default_rng(0).normal(size=40))
        assert fit.cross_validated_r2 < 0.1
        assert fit.press_r2 < 0.1

    @pytest.mark.parametrize("kind", BOUNDS)
    def test_noise_is_the_standard_deviation_of_the_evaluations(self, kind: str) -> None:
        lower, upper = BOUNDS[kind]
        estimates = [
            fit_quadratic(*noisy(3, 40, kind, 0.03, seed=seed), lower=lower, upper=upper, ridges=[0.0]).noise
            for seed in range(12)
        ]
        # 12 * 30 degrees of freedom: 4 % standard error
        assert np.sqrt(np.mean(np.square(estimates))) == pytest.approx(0.03, rel=0.12)

    def test_degrees_of_freedom_are_evaluations_less_parameters(self) -> None:
        fit = fit_quadratic(*noisy(3, 40, "identity", 0.1, seed=0), ridges=[0.0])
        assert fit.degrees_of_freedom == pytest.approx(30, abs=1e-9)

    def test_ridge_helps_where_parameters_are_many(self) -> None:
        """Accuracies with noise, K little above p: the chosen penalty must beat plain least squares on fresh points."""
        gains = []
        for seed in range(4):
            truth = quadratic(6, seed=seed, bounds=(0, 1))
            c, m = noisy(6, 32, "sigmoid", 0.03, seed=seed)
            fresh = points(6, 500, seed=99)
            real = truth.predict(fresh)
            plain, chosen = (
                r_squared(real, fit_quadratic(c, m, lower=0, upper=1, **options).surrogate.predict(fresh))
                for options in ({"ridges": [0.0]}, {})
            )
            gains.append(chosen - plain)
        assert np.mean(gains) > 0.05
        assert min(gains) > -0.02


class TestUnderDetermined:
    @pytest.mark.parametrize("kind", BOUNDS)
    def test_warns_and_predicts_reasonably(self, kind: str) -> None:
        lower, upper = BOUNDS[kind]
        c, m = noisy(4, 11, kind, 0.0, seed=1)
        fit = fit_quadratic(c, m, lower=lower, upper=upper)
        assert "11 evaluations are fewer than the 15 parameters" in fit.warnings[0]
        assert fit.ridge > 0
        fresh = fit.surrogate.predict(points(4, 200, seed=8))
        assert fresh.min() > m.min() - np.ptp(m)
        assert fresh.max() < m.max() + np.ptp(m)

    def test_small_ridge_gives_the_minimum_norm_solution(self) -> None:
        c, m = noisy(3, 6, "identity", 0.0, seed=1)
        X = Basis.over(c).design(c)
        # the constant is free: minimise the norm of the rest among all that interpolate
        centred = X[:, 1:] - X[:, 1:].mean(axis=0)
        shortest = np.linalg.pinv(centred) @ (m - m.mean())
        np.testing.assert_allclose(solve(X, m, Link(), [1e-13]).beta_p[1:], shortest, atol=1e-8)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_of_a_handful_of_evaluations(self, count: int) -> None:
        c, m = noisy(3, count, "sigmoid", 0.0, seed=1)
        fit = fit_quadratic(c, m, lower=0, upper=1)
        assert fit.used == count
        assert np.isfinite(fit.surrogate.predict(points(3, 20))).all()

    def test_of_one_candidate_evaluated_often(self) -> None:
        fit = fit_quadratic(np.full((9, 2), 0.5), np.linspace(0.4, 0.6, 9), lower=0, upper=1)
        assert fit.surrogate.predict([[0.5, 0.5]])[0] == pytest.approx(0.5, abs=1e-6)
        assert math.isnan(fit.cross_validated_r2)
        assert fit.noise == pytest.approx(np.std(np.linspace(0.4, 0.6, 9), ddof=1), rel=1e-6)

    def test_of_a_coefficient_that_never_varies(self) -> None:
        truth = quadratic(3, seed=0)
        c = points(3, 30)
        c[:, 1] = 0.3
        fit = fit_quadratic(c, truth.predict(c))
        np.testing.assert_allclose(fit.surrogate.predict(c), truth.predict(c), atol=1e-9)
        assert fit.press_r2 == pytest.approx(1, abs=1e-9)


def test_the_entry_of_surrogates_json_restores_the_surrogate() -> None:
    fit = fit_quadratic(*noisy(2, 30, "sigmoid", 0.02, seed=0), lower=0, upper=1)
    entry = json.loads(json.dumps(fit.to_dict()))
    assert entry["held_out_r2"] == fit.cross_validated_r2
    assert len(entry["observed"]) == len(entry["out_of_fold"]) == entry["samples"] == 30
    c = points(2, 10)
    assert np.array_equal(QuadraticSurrogate.from_dict(entry).predict(c), fit.surrogate.predict(c))
