"""The reference point of expected hypervolume improvement."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergecore.acquisitions.hypervolume import LEAST_ROOM, reference_point
from mergecore.sampling import sample
from mergecore.surrogates.gaussian_process import MetricProcesses


def metrics(c_KN: np.ndarray) -> np.ndarray:
    """An accuracy and a loss [K, 2] that want different models, and a third that is always the same."""
    accuracy = 0.5 + 0.4 * c_KN[:, 0] - 0.2 * c_KN[:, 1] ** 2
    return np.stack([accuracy, 2 + c_KN[:, 0] - c_KN[:, 1], np.full(len(c_KN), 0.3)], axis=1)


def processes(low: float, high: float, count: int = 24) -> MetricProcesses:
    box_N2 = np.array([[low, high]] * 2)
    c_KN = sample("sobol", count, box=box_N2, seed=0, anchors=False)
    metrics_KT = metrics(c_KN)
    return MetricProcesses(c_KN, metrics_KT, np.full_like(metrics_KT, np.nan), box_N2, [True, False, True])


def test_it_is_the_worst_of_the_single_models() -> None:
    made = processes(-0.25, 1.25)
    gains_T = reference_point(made, parts=False).numpy()
    found_T = made.centre_T + made.sign_T * gains_T * made.spread_T
    single_NT = metrics(np.eye(2))
    np.testing.assert_allclose(found_T[:2], [single_NT[:, 0].min(), single_NT[:, 1].max()], atol=0.02)


def test_it_is_lower_where_the_prediction_is_unsure() -> None:
    made = processes(-0.25, 1.25, count=5)
    found_T = made.centre_T + made.sign_T * reference_point(made, parts=False).numpy() * made.spread_T
    predicted_NT = made.predict(np.eye(2))
    assert found_T[0] < predicted_NT[:, 0].min() - 0.01
    assert found_T[1] > predicted_NT[:, 1].max() + 0.01


def test_there_is_room_where_nothing_differs() -> None:
    assert reference_point(processes(0.0, 1.0), parts=False)[2] == pytest.approx(-LEAST_ROOM, abs=1e-6)


@pytest.mark.parametrize(("high", "parts"), [(0.8, False), (1.0, True)])
def test_without_single_models_it_is_worse_than_anything_evaluated(high: float, parts: bool) -> None:
    made = processes(0.0, high)
    found_T = reference_point(made, parts=parts)
    assert (found_T[:2] < made.gains_KT.min(dim=0).values[:2]).all()
    assert torch.isfinite(found_T).all()


def test_one_single_model_in_the_box_is_enough() -> None:
    box_N2 = np.array([[0.0, 1.0], [0.0, 0.5]])
    c_KN = sample("sobol", 24, box=box_N2, seed=0, anchors=False)
    made = MetricProcesses(c_KN, metrics(c_KN), np.full((24, 3), np.nan), box_N2, [True, False, True])
    gains_T = reference_point(made, parts=False).numpy()
    found_T = made.centre_T + made.sign_T * gains_T * made.spread_T
    assert found_T[1] == pytest.approx(3.0, abs=0.02)
