"""Metrics agree with scikit-learn, and their standard errors with the jackknife."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from mergecore.evaluators.metrics import METRICS, classification_metrics, f1, matthews_correlation, token_metrics


def noisy_labels(classes: int, seed: int = 0, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.choice(classes, count, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return np.where(generator.random(count) < 0.6, labels, generator.integers(0, classes, count)), labels


def jackknife(statistic: Callable[[np.ndarray], float], count: int) -> float:
    values = np.array([statistic(np.delete(np.arange(count), left_out)) for left_out in range(count)])
    return float(np.sqrt((count - 1) * values.var()))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_matthews_correlation(classes: int) -> None:
    predicted, labels = noisy_labels(classes)
    value, error = matthews_correlation(predicted, labels)
    assert value == pytest.approx(matthews_corrcoef(labels, predicted), abs=1e-12)
    expected = jackknife(lambda kept: matthews_corrcoef(labels[kept], predicted[kept]), len(labels))
    assert error == pytest.approx(expected, rel=0.02)


def test_f1() -> None:
    predicted, labels = noisy_labels(2)
    value, error = f1(predicted, labels)
    assert value == pytest.approx(f1_score(labels, predicted), abs=1e-12)
    expected = jackknife(lambda kept: f1_score(labels[kept], predicted[kept]), len(labels))
    assert error == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("predicted", "labels", "correlation", "of_class_1"),
    [
        ([0, 0, 0], [0, 1, 1], 0.0, 0.0),
        ([1, 1, 1], [1, 1, 1], 0.0, 1.0),
        ([0, 0, 0], [0, 0, 0], 0.0, 0.0),
        ([1, 0, 1], [0, 1, 0], -1.0, 0.0),
        ([0, 1, 0], [0, 1, 0], 1.0, 1.0),
    ],
)
def test_edges(predicted: list[int], labels: list[int], correlation: float, of_class_1: float) -> None:
    arrays = np.array(predicted), np.array(labels)
    assert matthews_correlation(*arrays)[0] == pytest.approx(correlation, abs=1e-12)
    assert f1(*arrays)[0] == of_class_1


def test_f1_is_for_two_classes() -> None:
    labels, losses = np.array([0, 1, 1, 0]), np.ones(4)
    assert "f1" not in classification_metrics(losses, labels, labels)
    assert set(classification_metrics(losses, labels, labels, binary=True)) <= set(METRICS)


def test_token_metrics() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(50, 100, 200)
    nats = tokens * (2 + generator.normal(0, 0.3, 200))
    found = token_metrics(nats, tokens, bytes_per_token=4.0)
    loss = nats.sum() / tokens.sum()
    assert found["loss"][0] == pytest.approx(loss)
    assert found["perplexity"][0] == pytest.approx(np.exp(loss))
    assert found["bits_per_byte"][0] == pytest.approx(loss / 4 / np.log(2))
    for name, statistic in {
        "loss": lambda kept: nats[kept].sum() / tokens[kept].sum(),
        "perplexity": lambda kept: np.exp(nats[kept].sum() / tokens[kept].sum()),
    }.items():
        assert found[name][1] == pytest.approx(jackknife(statistic, len(tokens)), rel=0.02)
    assert np.isnan(token_metrics(nats[:1], tokens[:1], bytes_per_token=4.0)["loss"][1])
