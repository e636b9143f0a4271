"""Surrogates of metrics that are constant, missing, outside their range, or in extreme units."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore.errors import InputError, NumericalError
from mergecore.surrogates import fit_quadratic
from mergecore.surrogates.links import Link
from mergecore.surrogates.quadratic import r_squared
from tests.mergecore.surrogates.test_quadratic import noisy, points, quadratic


class TestDifficultMetrics:
    @pytest.mark.parametrize("value", [0.0, 1.0, 0.37, 1e-12])
    def test_constant(self, value: float) -> None:
        fit = fit_quadratic(points(2, 12), np.full(12, value), lower=0, upper=1)
        np.testing.assert_allclose(fit.surrogate.predict(points(2, 5, box=(-9, 9))), value, rtol=1e-12, atol=0)
        assert all(math.isnan(r2) for r2 in (fit.cross_validated_r2, fit.press_r2, fit.train_r2))
        assert fit.noise == 0
        assert "its surrogate is that constant" in fit.warnings[-1]
        json.dumps(fit.surrogate.to_dict(), allow_nan=False)

    @pytest.mark.parametrize(("lower", "upper", "value"), [(0, None, 0.0), (None, 5, 5.0), (None, None, 3.0)])
    def test_constant_with_other_links(self, lower: float | None, upper: float | None, value: float) -> None:
        fit = fit_quadratic(points(2, 12), np.full(12, value), lower=lower, upper=upper)
        assert (fit.surrogate.predict(points(2, 5)) == value).all()

    def test_failed_evaluations_are_left_out_and_counted(self) -> None:
        c, m = noisy(2, 30, "identity", 0.1, seed=0)
        clean = fit_quadratic(c[5:], m[5:])
        m[:3], m[3], m[4] = np.nan, np.inf, -np.inf
        fit = fit_quadratic(c, m)
        assert (fit.used, fit.excluded) == (25, 5)
        assert "5 of 30 evaluations" in fit.warnings[0]
        assert np.array_equal(fit.surrogate.A_NN, clean.surrogate.A_NN)

    def test_nothing_finite_is_an_error(self) -> None:
        with pytest.raises(NumericalError, match="None of the 8"):
            fit_quadratic(points(2, 8), np.full(8, np.nan))

    @pytest.mark.parametrize("seed", range(6))
    def test_accuracies_that_touch_both_bounds(self, seed: int) -> None:
        """Steep truth of 100 examples: most metrics are exactly 0 or 1, where the link has no slope."""
        steep = quadratic(3, seed=seed)
        c = points(3, 80, seed=seed)
        q = steep.predict(c)

        def accuracy(c_KN: np.ndarray) -> np.ndarray:
            return Link(0, 1).value(6 * (steep.predict(c_KN) - np.median(q)) / q.std())

        m = np.round(accuracy(c), 2)
        assert ((m == 0) | (m == 1)).sum() >= 20
        fit = fit_quadratic(c, m, lower=0, upper=1)
        fresh = points(3, 500, seed=50)
        assert r_squared(accuracy(fresh), fit.surrogate.predict(fresh)) > 0.97
        assert fit.cross_validated_r2 > 0.9

    def test_metrics_that_are_only_zero_or_one(self) -> None:
        c = points(2, 60)
        m = (c.sum(axis=1) > 1).astype(float)
        fit = fit_quadratic(c, m, lower=0, upper=1)
        assert fit.train_r2 > 0.9
        assert fit.cross_validated_r2 > 0.6
        assert np.isfinite([fit.surrogate.e, *fit.surrogate.b_N]).all()

    def test_a_single_success_among_zeros(self) -> None:
        m = np.zeros(40)
        m[11] = 0.02
        fit = fit_quadratic(points(2, 40), m, lower=0, upper=1)
        predicted = fit.surrogate.predict(points(2, 300, seed=4))
        assert (predicted >= 0).all()
        assert predicted.max() < 0.5

    def test_perplexities_over_an_order_of_magnitude(self) -> None:
        c = points(3, 60)
        m = 5 * np.exp(3 * (c**2).mean(axis=1))
        fit = fit_quadratic(c, m, lower=1)
        assert fit.cross_validated_r2 > 0.75
        assert (fit.surrogate.predict(points(3, 100, seed=2)) >= 1).all()

    def test_metrics_outside_their_range_are_said(self) -> None:
        c, m = noisy(2, 30, "sigmoid", 0.0, seed=0)
        m[3], m[4] = 1.2, -0.1
        assert "2 metrics lie outside their stated range [0, 1]" in fit_quadratic(c, m, lower=0, upper=1).warnings[0]

    def test_a_clean_fit_has_no_warnings(self) -> None:
        assert fit_quadratic(*noisy(2, 30, "sigmoid", 0.0, seed=0), lower=0, upper=1).warnings == ()

    @pytest.mark.parametrize(
        ("c", "m", "options"),
        [
            (np.zeros((4, 2)), np.zeros(3), {}),
            (np.zeros(4), np.zeros(4), {}),
            (np.full((4, 2), np.nan), np.zeros(4), {}),
            (np.zeros((4, 2)), np.zeros(4), {"lower": 1, "upper": 1}),
        ],
    )
    def test_mistakes_are_named(self, c: np.ndarray, m: np.ndarray, options: dict[str, float]) -> None:
        with pytest.raises(InputError):
            fit_quadratic(c, m, **options)

    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_any_accuracies_give_finite_predictions(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, 25))
        accuracy = st.sampled_from([0.0, 1.0, 0.5, 0.25, 0.99, math.nan])
        m = np.array(data.draw(st.lists(accuracy, min_size=count, max_size=count)))
        c = points(2, count, seed=data.draw(st.integers(0, 5)))
        if not np.isfinite(m).any():
            with pytest.raises(NumericalError):
                fit_quadratic(c, m, lower=0, upper=1)
            return
        fit = fit_quadratic(c, m, lower=0, upper=1)
        predicted = fit.surrogate.predict(points(2, 50, seed=9))
        assert ((predicted >= 0) & (predicted <= 1)).all()
