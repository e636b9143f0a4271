"""Refitted heads equal scikit-learn's, and the layer that is refitted is the one that makes the logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from mergecore.errors import InputError
from mergecore.evaluators.linear_head import fit_head, output_layer
from tests.mergecore.evaluators.pico_resnet import candidate, resnet

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, 60)
FEATURES = (RANDOM.normal(size=(60, 5)) + LABELS[:, None] * [1.0, 0.0, -1.0, 0.5, 0.0] + 3).astype(np.float32)
ONE_HOT = np.eye(3)[LABELS]


def fitted(method: str, ridge: float, *, bias: bool = True, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    features, labels = torch.from_numpy(FEATURES[:count]), torch.from_numpy(LABELS[:count])
    w_CD, b_C = fit_head(features, labels, classes=3, method=method, ridge=ridge, bias=bias)
    return w_CD.numpy(), b_C.numpy()


@pytest.mark.parametrize("ridge", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("count", [60, 4])
def test_closed_form_is_ridge_regression(ridge: float, count: int) -> None:
    w_CD, b_C = fitted("closed_form", ridge, count=count)
    expected = Ridge(alpha=ridge).fit(FEATURES[:count].astype(np.float64), ONE_HOT[:count])
    np.testing.assert_allclose(w_CD, expected.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(b_C, expected.intercept_, rtol=1e-8)


def test_closed_form_is_least_squares_with_penalty_rows() -> None:
    w_CD, b_C = fitted("closed_form", 2.0)
    rows = np.vstack([np.hstack([FEATURES, np.ones((60, 1))]), np.hstack([np.sqrt(2.0) * np.eye(5), np.zeros((5, 1))])])
    expected = np.linalg.lstsq(rows, np.vstack([ONE_HOT, np.zeros((5, 3))]), rcond=None)[0].T
    np.testing.assert_allclose(np.column_stack([w_CD, b_C]), expected, rtol=1e-8, atol=1e-10)


def test_closed_form_without_a_bias() -> None:
    w_CD, b_C = fitted("closed_form", 1.0, bias=False)
    expected = Ridge(alpha=1.0, fit_intercept=False).fit(FEATURES.astype(np.float64), ONE_HOT)
    np.testing.assert_allclose(w_CD, expected.coef_, rtol=1e-8, atol=1e-10)
    assert not b_C.any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_logistic_is_logistic_regression(ridge: float, bias: bool) -> None:
    w_CD, b_C = fitted("logistic", ridge, bias=bias)
    model = LogisticRegression(C=1 / ridge, fit_intercept=bias, tol=1e-10, max_iter=10_000)
    expected = model.fit(FEATURES.astype(np.float64), LABELS)
    np.testing.assert_allclose(w_CD, expected.coef_, rtol=1e-3, atol=1e-4)
    probability = np.exp(FEATURES @ w_CD.T + b_C)
    probability /= probability.sum(1, keepdims=True)
    np.testing.assert_allclose(probability, expected.predict_proba(FEATURES), atol=1e-4)


@pytest.mark.parametrize(("library", "name"), [("transformers", "classifier.1"), ("timm", "fc"), ("torchvision", "fc")])
def test_finds_the_layer_that_makes_the_logits(library: str, name: str) -> None:
    module = resnet(library)
    assert output_layer(candidate(module), module, torch.rand(2, 3, 32, 32)) == name
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


def test_a_candidate_of_nans_still_has_its_head() -> None:
    module = resnet("timm")
    assert output_layer(candidate(module), module, torch.full((2, 3, 32, 32), float("nan"))) == "fc"


@pytest.mark.parametrize(
    "module",
    [torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1)), torch.nn.Conv1d(2, 3, 4), torch.nn.Identity()],
)
def test_a_network_that_does_not_end_in_a_linear_layer(module: torch.nn.Module) -> None:
    inputs = torch.full((2, 4), -1.0)
    with pytest.raises(InputError, match=r"does not end in a linear layer|returns no logits"):
        output_layer(candidate(module), module, inputs)
