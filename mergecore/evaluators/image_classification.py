"""Accuracy and cross-entropy of an image classifier on labelled arrays in memory."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mergecore.data import load_arrays
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Context, Evaluator, Measurement, parse_arguments
from mergecore.evaluators.metrics import classification_metrics

if TYPE_CHECKING:
    from mergecore.config import DatasetConfig, TaskConfig


class ImageArguments(BaseModel):
    """``args`` of the evaluator."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int = Field(512, ge=1)
    mean: tuple[float, ...] = Field((), description="Per channel, subtracted after scaling bytes to [0, 1].")
    std: tuple[float, ...] = Field((), description="Per channel, divided by.")


class ImageClassification(Evaluator):
    """Top-1 classification with the model's own head.

    Images are [n, C, H, W] floats, or bytes as [n, H, W] or [n, H, W, C], which are scaled to [0, 1] and repeated to
    three channels when ``mean`` has three.
    """

    metrics: ClassVar[tuple[str, ...] | None] = ("accuracy", "balanced_accuracy", "cross_entropy")
    version: ClassVar[int] = 1

    def __init__(self, task: TaskConfig, dataset: DatasetConfig | None, context: Context) -> None:
        if dataset is None:
            raise InputError(f"The task {task.name!r} names no dataset.", "Add 'dataset: {path: …, split: …}'.")
        self._args = parse_arguments(ImageArguments, task)
        if len(self._args.mean) != len(self._args.std):
            raise InputError(f"The task {task.name!r}: args.mean and args.std differ in length.")
        self._name = task.name
        self._data = load_arrays(
            dataset.path, split=dataset.split, limit=dataset.limit, seed=dataset.seed, home=context.home
        )
        if self._data.x.dtype != np.uint8 and self._data.x.ndim != 4:
            raise InputError(
                f"The images of {dataset.path!r} have the shape {list(self._data.x.shape)}, not [n, C, H, W]."
            )

    @property
    def key(self) -> str:
        """Content key of data, normalisation and code version; the batch size is no content."""
        facts = ["image_classification", self.version, self._data.key, self._args.mean, self._args.std]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def examples(self) -> int:
        """Number of images."""
        return len(self._data)

    def evaluate(self, candidate: Candidate) -> Measurement:
        """One pass over the images; accuracy, balanced accuracy and cross-entropy come from the same logits."""
        module = candidate.module()
        size = self._args.batch_size
        losses, predicted = [], []
        with torch.inference_mode():
            for start in range(0, len(self._data), size):
                images = self._images(self._data.x[start : start + size])
                labels = torch.from_numpy(np.array(self._data.y[start : start + size]))
                logits = _logits(module(images)).float()
                if int(labels.max()) >= logits.shape[1]:
                    raise InputError(
                        f"The task {self._name!r} has the label {int(labels.max())}, "
                        f"the model {logits.shape[1]} classes."
                    )
                losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none").numpy())
                predicted.append(logits.argmax(dim=1).numpy())
        if not np.isfinite(np.concatenate(losses)).all():
            nothing = dict.fromkeys(self.metrics or (), float("nan"))
            return Measurement(nothing, {}, len(self._data))
        found = classification_metrics(np.concatenate(losses), np.concatenate(predicted), np.asarray(self._data.y))
        return Measurement(
            {name: value for name, (value, _) in found.items()},
            {name: error for name, (_, error) in found.items()},
            len(self._data),
        )

    def check(self, base: Any) -> None:
        """Compare the labels with the number of classes that the model's config states."""
        config = base.folder / "config.json" if base.folder is not None else None
        if config is None or not config.is_file():
            return
        stated = json.loads(config.read_text())
        classes = len(stated["id2label"]) if "id2label" in stated else stated.get("num_labels")
        highest = int(np.max(self._data.y))
        if classes is not None and highest >= classes:
            raise InputError(f"The task {self._name!r} has the label {highest}, but the model has {classes} classes.")

    def _images(self, batch: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(np.array(batch))
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
            images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        images = images.float()
        if self._args.mean:
            mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self._args.mean, self._args.std))
            images = images.sub(mean).div_(std)
        return images


def _logits(output: Any) -> torch.Tensor:
    return output.logits if hasattr(output, "logits") else output
