"""Metrics by name: direction, range, and how classification metrics follow from predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Metric:
    """Direction and range of a metric; ``None`` is unbounded."""

    maximise: bool
    lower: float | None
    upper: float | None

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """(lower, upper)."""
        return self.lower, self.upper


METRICS = {
    "accuracy": Metric(True, 0.0, 1.0),
    "balanced_accuracy": Metric(True, 0.0, 1.0),
    "cross_entropy": Metric(False, 0.0, None),
    "perplexity": Metric(False, 1.0, None),
}


def classification_metrics(
    losses_n: np.ndarray, predicted_n: np.ndarray, labels_n: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Every classification metric of one pass, each with its standard error.

    Args:
        losses_n: cross-entropy of each example, in nats.
        predicted_n: predicted class numbers.
        labels_n: true class numbers.

    Returns:
        Name to (value, standard error). The error of accuracy is binomial, that of the loss from its spread, that of
        balanced accuracy (mean recall over the classes that occur) from the binomial errors of the recalls.
    """
    correct = (predicted_n == labels_n).astype(np.float64)
    count = len(correct)
    accuracy = float(correct.mean())
    classes = [correct[labels_n == label] for label in np.unique(labels_n)]
    recalls = np.array([members.mean() for members in classes])
    variances = recalls * (1 - recalls) / np.array([len(members) for members in classes])
    losses = losses_n.astype(np.float64)
    return {
        "accuracy": (accuracy, float(np.sqrt(accuracy * (1 - accuracy) / count))),
        "balanced_accuracy": (float(recalls.mean()), float(np.sqrt(variances.sum()) / len(classes))),
        "cross_entropy": (float(losses.mean()), float(losses.std() / np.sqrt(count))),
    }
