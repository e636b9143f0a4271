"""Accuracy and cross-entropy of an image classifier, if wanted after adapting it to the merged weights."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mergecore.data.images import Images, load_images
from mergecore.errors import InputError
from mergecore.evaluators.adaptation import Adaptation, BatchNormArguments, HeadArguments, adapted_logits
from mergecore.evaluators.base import Candidate, Context, Evaluator, Measurement, parse_arguments
from mergecore.evaluators.batching import BatchSize
from mergecore.evaluators.classification import measure_classifier
from mergecore.evaluators.image_feed import ImageFeed

if TYPE_CHECKING:
    from mergecore.config import DatasetConfig, TaskConfig


class ImageArguments(BaseModel):
    """``args`` of the evaluator."""

    model_config = ConfigDict(extra="forbid")

    batch_size: BatchSize = "auto"
    mean: tuple[float, ...] = Field((), description="Per channel, subtracted after scaling bytes to [0, 1].")
    std: tuple[float, ...] = Field((), description="Per channel, divided by.")
    batch_norm: BatchNormArguments | None = Field(None, description="Estimate statistics again after each merge.")
    refit_head: HeadArguments | None = Field(None, description="Fit the last layer again after each merge.")


class ImageClassification(Evaluator):
    """Top-1 classification with the network's own head, or one fitted to the merged features."""

    metrics: ClassVar[tuple[str, ...] | None] = ("accuracy", "balanced_accuracy", "cross_entropy")
    version: ClassVar[int] = 2

    def __init__(self, task: TaskConfig, dataset: DatasetConfig | None, context: Context) -> None:
        if dataset is None:
            raise InputError(f"The task {task.name!r} names no dataset.", "Add 'dataset: {path: …, split: …}'.")
        self._args = parse_arguments(ImageArguments, task)
        if len(self._args.mean) != len(self._args.std):
            raise InputError(f"The task {task.name!r}: args.mean and args.std differ in length.")
        self._name, self._context = task.name, context
        self._images = self._load(dataset)
        self._feeds: dict[str, ImageFeed] = {}

        def draw(split: str, limit: int, seed: int | None) -> Images:
            given = {"split": split, "limit": limit, "seed": dataset.seed if seed is None else seed}
            return self._load(dataset.model_copy(update=given))

        self._adaptation = Adaptation(self._args.batch_norm, self._args.refit_head, draw, task.name)

    @property
    def key(self) -> str:
        """Content key of data, normalisation, adaptation and code version; the batch size is no content."""
        facts = ["image_classification", self.version, self._images.key, self._adaptation.facts]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def examples(self) -> int:
        """Number of images that are measured on."""
        return len(self._images)

    def evaluate(self, candidate: Candidate) -> Measurement:
        """One pass over the images; accuracy, balanced accuracy and cross-entropy come from the same logits."""
        adapted, feed = self._adapted(candidate), self._feed(self._images, candidate.device)

        def logits_of(start: int, stop: int) -> torch.Tensor:
            return adapted_logits(candidate, adapted, feed[start:stop])

        return measure_classifier(logits_of, self._images.y, batcher=feed.batcher, task=self._name)

    def adapted_tensors(self, candidate: Candidate) -> dict[str, torch.Tensor]:
        """Re-estimated statistics and the refitted head."""
        # networks may call a tensor otherwise than the file does, but they share its memory
        named = {tensor.data_ptr(): name for name, tensor in candidate.weights.items()}
        state = candidate.module().state_dict(keep_vars=True)
        return {named.get(state[name].data_ptr(), name): tensor for name, tensor in self._adapted(candidate).items()}

    def check(self, base: Any) -> None:
        """Compare the labels with the number of classes that the network's config states."""
        if self._args.batch_norm is not None and not any(name.endswith("running_mean") for name in base.tensors):
            raise InputError(
                f"The task {self._name!r} asks for args.batch_norm, but {base.source!r} has no batch-norm layer."
            )
        config = self._context.folder / "config.json" if self._context.folder is not None else None
        if self._args.refit_head is not None or config is None or not config.is_file():
            return
        stated = json.loads(config.read_text("utf-8"))
        classes = (
            len(stated["id2label"]) if "id2label" in stated else stated.get("num_labels", stated.get("num_classes"))
        )
        highest = int(np.max(self._images.y))
        if classes is not None and highest >= classes:
            raise InputError(f"The task {self._name!r} has the label {highest}, but the model has {classes} classes.")

    def _load(self, dataset: DatasetConfig) -> Images:
        return load_images(dataset, self._context, mean=self._args.mean, std=self._args.std)

    def _adapted(self, candidate: Candidate) -> dict[str, torch.Tensor]:
        return self._adaptation.tensors(candidate, lambda images: self._feed(images, candidate.device))

    def _feed(self, images: Images, device: torch.device) -> ImageFeed:
        if images.key not in self._feeds:
            self._feeds[images.key] = ImageFeed(images, device, self._args.batch_size)
        return self._feeds[images.key]
