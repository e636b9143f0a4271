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
    "matthews_correlation": Metric(True, -1.0, 1.0),
    "f1": Metric(True, 0.0, 1.0),
    "cross_entropy": Metric(False, 0.0, None),
    "loss": Metric(False, 0.0, None),
    "perplexity": Metric(False, 1.0, None),
    "bits_per_byte": Metric(False, 0.0, None),
    # names of lm-evaluation-harness
    "acc": Metric(True, 0.0, 1.0),
    "acc_norm": Metric(True, 0.0, 1.0),
    "exact_match": Metric(True, 0.0, 1.0),
    "mcc": Metric(True, -1.0, 1.0),
    "word_perplexity": Metric(False, 1.0, None),
    "byte_perplexity": Metric(False, 1.0, None),
}


def classification_metrics(
    losses_n: np.ndarray, predicted_n: np.ndarray, labels_n: np.ndarray, *, binary: bool = False
) -> dict[str, tuple[float, float]]:
    """Every classification metric of one pass, each with its standard error.

    Args:
        losses_n: cross-entropy of each example, in nats.
        predicted_n: predicted class numbers.
        labels_n: true class numbers.
        binary: whether there are just the classes 0 and 1, so that class 1 has an F1.

    Returns:
        Name to (value, standard error). The error of accuracy is binomial, that of the loss from its spread, that of
        balanced accuracy (mean recall over the classes that occur) from the binomial errors of the recalls; those of
        Matthews' correlation and F1 are first-order (delta method).
    """
    correct = (predicted_n == labels_n).astype(np.float64)
    count = len(correct)
    accuracy = float(correct.mean())
    classes = [correct[labels_n == label] for label in np.unique(labels_n)]
    recalls = np.array([members.mean() for members in classes])
    variances = recalls * (1 - recalls) / np.array([len(members) for members in classes])
    losses = losses_n.astype(np.float64)
    found = {
        "accuracy": (accuracy, float(np.sqrt(accuracy * (1 - accuracy) / count))),
        "balanced_accuracy": (float(recalls.mean()), float(np.sqrt(variances.sum()) / len(classes))),
        "matthews_correlation": matthews_correlation(predicted_n, labels_n),
        "cross_entropy": (float(losses.mean()), float(losses.std() / np.sqrt(count))),
    }
    return found | {"f1": f1(predicted_n, labels_n)} if binary else found


def matthews_correlation(predicted_n: np.ndarray, labels_n: np.ndarray) -> tuple[float, float]:
    """Matthews' correlation of predicted and true classes, and its standard error.

    For more than two classes Gorodkin's generalisation (2004, doi:10.1016/j.compbiolchem.2004.09.006). Zero when either
    side is constant.
    """
    count, classes = len(labels_n), int(max(predicted_n.max(), labels_n.max())) + 1
    p_C, t_C = (np.bincount(found_n, minlength=classes) / count for found_n in (predicted_n, labels_n))
    spread_p, spread_t = 1 - np.square(p_C).sum(), 1 - np.square(t_C).sum()
    if spread_p <= 0 or spread_t <= 0:
        return 0.0, 0.0
    correct = predicted_n == labels_n
    scale, by_chance = np.sqrt(spread_p * spread_t), p_C @ t_C
    value = (correct.mean() - by_chance) / scale
    # what one example adds to agreement, to agreement by chance and to both spreads, each beside its mean
    agreement_n = correct - correct.mean() - (t_C[predicted_n] + p_C[labels_n] - 2 * by_chance)
    spreads_n = (p_C[predicted_n] + spread_p - 1) / spread_p + (t_C[labels_n] + spread_t - 1) / spread_t
    return float(value), _standard_error(agreement_n / scale + value * spreads_n)


def f1(predicted_n: np.ndarray, labels_n: np.ndarray) -> tuple[float, float]:
    """Harmonic mean of precision and recall of class 1, and its standard error; zero when class 1 does not occur."""
    hits_n = ((predicted_n == 1) & (labels_n == 1)).astype(np.float64)
    named_n = ((predicted_n == 1).astype(np.float64) + (labels_n == 1)) / 2
    if not named_n.any():
        return 0.0, 0.0
    value = hits_n.mean() / named_n.mean()
    return float(value), _standard_error((hits_n - value * named_n) / named_n.mean())


def token_metrics(
    nats_w: np.ndarray, tokens_w: np.ndarray, *, bytes_per_token: float
) -> dict[str, tuple[float, float]]:
    """Token-weighted metrics of a language model, each with its standard error.

    Args:
        nats_w: sum of the negative log-likelihoods of the tokens scored in each window.
        tokens_w: their number, at least one each.
        bytes_per_token: mean length of a token in the text.

    Returns:
        Name to (value, standard error). The errors follow from the spread of the windows (of a ratio of two sums, to
        first order); NaN when there is one window.
    """
    windows, tokens = len(tokens_w), float(tokens_w.sum())
    loss = float(nats_w.sum() / tokens)
    residuals_w = (nats_w - loss * tokens_w) * windows / tokens
    error = _standard_error(residuals_w) * np.sqrt(windows / (windows - 1)) if windows > 1 else float("nan")
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(loss))
    bits = 1 / (np.log(2) * bytes_per_token)
    return {
        "perplexity": (perplexity, float(perplexity * error)),
        "loss": (loss, float(error)),
        "bits_per_byte": (float(loss * bits), float(error * bits)),
    }


def _standard_error(influences_n: np.ndarray) -> float:
    """Of a statistic, from the first-order influence of each example on it (mean zero)."""
    return float(np.sqrt(np.square(influences_n).mean() / len(influences_n)))
