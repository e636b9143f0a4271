"""One pass of a classifier over labelled examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch

from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Evaluator, Measurement
from mergecore.evaluators.batching import Batcher
from mergecore.evaluators.metrics import classification_metrics


class Classifier(Evaluator):
    """An evaluator that compares logits with labels.

    Attributes:
        labels_n: [n] true class numbers of the network.
    """

    labels_n: np.ndarray

    @abstractmethod
    def logits(self, candidate: Candidate, rows: np.ndarray) -> torch.Tensor:
        """Logits [b, C] of some examples on the network as it was merged."""

    def loss(self, candidate: Candidate, rows: np.ndarray) -> torch.Tensor:
        """Cross-entropy in nats, in float32."""
        logits_bC = self.logits(candidate, rows)
        with candidate.mode():
            labels_b = torch.from_numpy(self.labels_n[rows]).to(logits_bC.device)
            return torch.nn.functional.cross_entropy(logits_bC.float(), labels_b)


def measure_classifier(
    logits_of: Callable[[int, int], torch.Tensor], labels_n: np.ndarray, *, batcher: Batcher, task: str
) -> Measurement:
    """Every classification metric, from one pass; all of them NaN when a loss is not finite.

    Args:
        logits_of: logits [stop - start, C] of the examples from ``start`` to ``stop``, in any format, on any device.
        labels_n: [n] true class numbers.
        batcher: cuts the examples into batches.
        task: the task's name, for messages.

    Raises:
        InputError: a label is no class of the network.
    """
    labels = torch.from_numpy(np.array(labels_n, dtype=np.int64))
    highest = int(labels.max())

    def batch(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        logits_bC = logits_of(start, stop)
        if highest >= logits_bC.shape[1]:
            raise InputError(
                f"The task {task!r} has the label {highest}, but the network tells {logits_bC.shape[1]} classes apart."
            )
        with torch.inference_mode():  # in float32 whatever the network computes in
            logits_bC = logits_bC.float()
            labels_b = labels[start:stop].to(logits_bC.device, non_blocking=True)
            losses_b = torch.nn.functional.cross_entropy(logits_bC, labels_b, reduction="none")
            return losses_b, logits_bC.argmax(dim=1), logits_bC.shape[1]

    losses, predicted, classes = zip(*batcher.map(len(labels), batch), strict=True)
    losses_n, predicted_n = torch.cat(losses).cpu().numpy(), torch.cat(predicted).cpu().numpy()
    found = classification_metrics(losses_n, predicted_n, labels.numpy(), binary=classes[0] == 2)
    if not np.isfinite(losses_n).all():
        return Measurement(dict.fromkeys(found, float("nan")), {}, len(labels))
    return Measurement(
        {name: value for name, (value, _) in found.items()},
        {name: error for name, (_, error) in found.items()},
        len(labels),
    )
