"""The processes: their covariance against an obvious loop, noise, quadratics, and what is none."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore.sampling import sample
from mergecore.surrogates import fit_quadratic
from mergecore.surrogates.gaussian_process import (
    ROUGH_LENGTH,
    FallingMean,
    MetricProcesses,
    excess,
    nearly_quadratic,
    to_unit,
)

BOX_N2 = np.array([[-0.25, 1.0]] * 2)


def wavy(c_KN: np.ndarray) -> np.ndarray:
    """Two metrics [K, 2] that are no quadratics; the second is to be minimised."""
    bump = 0.1 * np.sin(6 * c_KN.sum(axis=1))
    return np.stack([0.9 - (c_KN[:, 0] - 0.8) ** 2 + bump, 2 + (c_KN[:, 1] - 0.9) ** 2 + c_KN[:, 0] + bump], axis=1)


def processes(c_KN: np.ndarray, metrics_KT: np.ndarray, noise_KT: np.ndarray | None = None) -> MetricProcesses:
    unknown = np.full_like(metrics_KT, np.nan)
    return MetricProcesses(c_KN, metrics_KT, unknown if noise_KT is None else noise_KT, BOX_N2, [True, False])


def points(count: int, seed: int) -> np.ndarray:
    return sample("sobol", count, box=BOX_N2, seed=seed)


def test_the_covariance_is_that_of_a_quadratic_a_smooth_deviation_and_a_rough_one() -> None:
    kernel = nearly_quadratic(3).double()
    quadratic, radial, rough = kernel.kernels
    x_KN = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        c, s, o = (float(v) for v in (quadratic.base_kernel.offset, quadratic.outputscale, radial.outputscale))
        r = float(rough.outputscale)
        lengths = radial.base_kernel.lengthscale[0].tolist()
        found = kernel(x_KN).to_dense()
    for i, x in enumerate(x_KN.tolist()):
        for j, y in enumerate(x_KN.tolist()):
            product = sum(a * b for a, b in zip(x, y, strict=True))
            distance = sum(((a - b) / length) ** 2 for a, b, length in zip(x, y, lengths, strict=True))
            apart = np.hypot.reduce(np.subtract(x, y)) / ROUGH_LENGTH
            smooth = s * (product + c) ** 2 + o * np.exp(-distance / 2)
            assert found[i, j] == pytest.approx(smooth + r * np.exp(-apart))


@pytest.mark.parametrize("parts", [False, True])
def test_the_mean_falls_with_the_squared_sum(parts: bool) -> None:
    box_N2 = np.array([[-0.5, 1.0], [0.0, 2.0], [0.25, 0.5]])
    mean = FallingMean(box_N2, parts=parts).double()
    mean.initialize(raw_fall=torch.tensor(3.0).log(), raw_constant=0.7)
    c_PN = sample("uniform", 5, box=box_N2, seed=0, anchors=False)
    found = mean(torch.from_numpy(to_unit(c_PN, box_N2))).detach().numpy()
    for c, value in zip(c_PN.tolist(), found, strict=True):
        assert value == pytest.approx(0.7 - 3 * (sum(c) / (3 if parts else 1)) ** 2)


def test_far_corners_are_expected_to_be_worse_than_what_is_known() -> None:
    """Of four evaluations near the base that say little about the corner."""
    c_KN = np.array([[0.2, 0.1], [0.1, 0.3], [0.3, 0.3], [0.0, 0.1]])
    metrics_KT = np.stack([0.8 + 0.01 * np.array([1, -1, 1, -1]), np.array([0.5, 0.52, 0.5, 0.52])], axis=1)
    accuracy, loss = processes(c_KN, metrics_KT).predict(np.ones((1, 2)))[0]
    assert accuracy < metrics_KT[:, 0].min()
    assert loss > metrics_KT[:, 1].max()


def test_quadratics_without_noise_are_found() -> None:
    """Where the noise that is learned goes to its bound, and the marginal likelihood's maximisation ends early."""
    c_KN, fresh_PN = points(30, 0), points(100, 1)

    def truth(c: np.ndarray) -> np.ndarray:
        return np.stack([1 - (c[:, 0] - 0.3) ** 2, 2 + c[:, 0] * c[:, 1] - c[:, 1] ** 2], axis=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = processes(c_KN, truth(c_KN)).predict(fresh_PN)
    np.testing.assert_allclose(found, truth(fresh_PN), atol=0.02 * truth(fresh_PN).std(axis=0).min())


def test_what_is_higher_by_chance_stays_so_where_it_was_measured_and_nowhere_else() -> None:
    """All candidates see the same examples, so to measure one again would give the same."""
    c_KN = points(40, 0)
    c_KN[11] = [0.3, 0.3]
    metrics_KT = np.stack([1 - ((c_KN - 0.3) ** 2).sum(axis=1), 2 + c_KN[:, 0]], axis=1)
    metrics_KT += 0.01 * np.random.default_rng(0).normal(size=metrics_KT.shape)
    metrics_KT[11, 0] = 1.03
    made = processes(c_KN, metrics_KT)
    assert made.predict(c_KN[11:12])[0, 0] == pytest.approx(1.03, abs=0.002)
    far = made.predict(np.array([[0.5, 0.3], [0.3, 0.1]]))[:, 0]
    np.testing.assert_allclose(far, 1 - 0.2**2, atol=0.02)


def test_a_metric_of_equal_values_stays_what_it_is() -> None:
    c_KN = points(10, 0)
    metrics_KT = np.stack([np.full(10, 0.7), c_KN[:, 0]], axis=1)
    np.testing.assert_allclose(processes(c_KN, metrics_KT).predict(points(20, 1))[:, 0], 0.7, atol=0.002)


def test_the_process_corrects_what_a_quadratic_cannot_say() -> None:
    c_KN, fresh_PN = points(40, 1), points(200, 9)
    metrics_KT, truth_PT = wavy(c_KN), wavy(fresh_PN)
    quadratic_PT = np.stack([fit_quadratic(c_KN, metrics_KT[:, t]).surrogate.predict(fresh_PN) for t in (0, 1)], axis=1)
    corrected = np.abs(processes(c_KN, metrics_KT).predict(fresh_PN) - truth_PT).mean(axis=0)
    assert (corrected < 0.6 * np.abs(quadratic_PT - truth_PT).mean(axis=0)).all()


def test_with_fewer_evaluations_than_parameters_a_quadratic_is_still_better_than_none() -> None:
    c_KN, fresh_PN = points(5, 0), points(200, 3)
    error = np.abs(processes(c_KN, wavy(c_KN)).predict(fresh_PN) - wavy(fresh_PN)).mean(axis=0)
    assert (error < 0.8 * np.abs(wavy(c_KN).mean(axis=0) - wavy(fresh_PN)).mean(axis=0)).all()


def test_what_was_measured_on_fewer_examples_counts_less() -> None:
    c_KN = points(20, 0)
    metrics_KT = wavy(c_KN)
    wrong = metrics_KT.copy()
    wrong[7] += 0.5
    equal, rough = np.full_like(wrong, 0.01), np.full_like(wrong, 0.01)
    rough[7] = 0.5
    off = {
        name: processes(c_KN, wrong, noise).predict(c_KN[7:8]) - metrics_KT[7]
        for name, noise in (("equal", equal), ("rough", rough))
    }
    assert (np.abs(off["rough"]) < 0.5 * np.abs(off["equal"])).all()


def test_one_not_measured_on_a_task_counts_on_the_others() -> None:
    c_KN = points(16, 0)
    metrics_KT = wavy(c_KN)
    metrics_KT[3, 0] = np.nan
    found = processes(c_KN, metrics_KT)
    assert found.unit_KN.shape == (15, 2)
    assert [len(model.train_targets) for model in found.model.models] == [15, 16]


def test_excess_is_what_is_beyond_the_smallest() -> None:
    noise_KT = np.array([[3.0, np.nan], [5.0, np.nan], [np.nan, 0.1], [3.0, 0.1]])
    np.testing.assert_allclose(excess(noise_KT), [[0, 0], [4, 0], [0, 0], [0, 0]], atol=1e-12)
    assert (excess(np.full((2, 2), np.nan)) == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 14), st.sampled_from(["far", "equal", "twice", "line", "rough"]))
def test_whatever_was_evaluated_there_is_a_prediction(seed: int, count: int, kind: str) -> None:
    """Line searches that jump to where a covariance is singular once ended a study."""
    random = np.random.default_rng(seed)
    c_KN = random.uniform(*BOX_N2[0], size=(count, 2))
    if kind == "twice":
        c_KN = np.repeat(c_KN, 2, axis=0)
    if kind == "line":
        c_KN[:, 1] = c_KN[:, 0]
    metrics_KT = wavy(c_KN)
    if kind == "far":
        metrics_KT[0] = 1e6
    if kind == "equal":
        metrics_KT[:] = 0.1
    if kind == "rough":
        metrics_KT += random.normal(size=metrics_KT.shape)
    found_PT = processes(c_KN, metrics_KT).predict(points(8, 0))
    assert np.isfinite(found_PT).all()
    span_T = np.ptp(metrics_KT, axis=0) + 1e-3 * np.maximum(np.abs(metrics_KT).max(axis=0), 1)
    assert (found_PT > metrics_KT.min(axis=0) - 10 * span_T).all()
    assert (found_PT < metrics_KT.max(axis=0) + 10 * span_T).all()
