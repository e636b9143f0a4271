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
from mergecore.evaluators.base import Candidate, Context, Measurement, parse_arguments, required_dataset
from mergecore.evaluators.batching import BatchSize
from mergecore.evaluators.class_names import LabelMap, class_titles, network_class_names, network_labels
from mergecore.evaluators.classification import Classifier, measure_classifier
from mergecore.evaluators.image_feed import ImageFeed
from mergecore.evaluators.networks import network_class, network_config

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
    label_map: LabelMap | None = Field(
        None, description="'by_name', 'by_number', or the network's class (name or number) for each of the data set's."
    )


class ImageClassification(Classifier):
    """Top-1 classification with the network's own head, or one fitted to the merged features.

    Attributes:
        adaptation: what is fitted to each merge before it is measured.
        class_names: of the network's classes, in order; None when nothing names or counts them.
    """

    metrics: ClassVar[tuple[str, ...] | None] = ("accuracy", "balanced_accuracy", "cross_entropy")
    version: ClassVar[int] = 2

    def __init__(self, task: TaskConfig, dataset: DatasetConfig | None, context: Context) -> None:
        dataset = required_dataset(task, dataset)
        self._args = parse_arguments(ImageArguments, task)
        if len(self._args.mean) != len(self._args.std):
            raise InputError(f"The task {task.name!r}: args.mean and args.std differ in length.")
        self._name, self._context = task.name, context
        self._images = self._load(dataset)
        self.labels_n = self._network_labels()
        self._feeds: dict[str, ImageFeed] = {}

        def draw(split: str, limit: int, seed: int | None) -> Images:
            given = {"split": split, "limit": limit, "seed": dataset.seed if seed is None else seed}
            return self._load(dataset.model_copy(update=given))

        self.adaptation = Adaptation(self._args.batch_norm, self._args.refit_head, draw, task.name)

    @property
    def key(self) -> str:
        """Content key of images, labels, adaptation and code version; the batch size is no content."""
        labels = hashlib.sha256(self.labels_n.tobytes()).hexdigest()
        facts = ["image_classification", self.version, self._images.key, labels, self.adaptation.facts]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def images(self) -> Images:
        """What is measured on."""
        return self._images

    @property
    def examples(self) -> int:
        """Number of images that are measured on."""
        return len(self._images)

    def evaluate(self, candidate: Candidate) -> Measurement:
        """One pass over the images; accuracy, balanced accuracy and cross-entropy come from the same logits."""
        adapted, feed = self._adapted(candidate), self._feed(self._images, candidate.device)

        def logits_of(start: int, stop: int) -> torch.Tensor:
            return adapted_logits(candidate, adapted, feed[start:stop])

        return measure_classifier(logits_of, self.labels_n, batcher=feed.batcher, task=self._name)

    def logits(self, candidate: Candidate, rows: np.ndarray) -> torch.Tensor:
        """Without the statistics and the head that a measurement would adapt first."""
        return adapted_logits(candidate, {}, self._feed(self._images, candidate.device)[rows])

    def adapted_tensors(self, candidate: Candidate) -> dict[str, torch.Tensor]:
        """Re-estimated statistics and the refitted head."""
        # networks may call a tensor otherwise than the file does, but they share its memory
        named = {tensor.data_ptr(): name for name, tensor in candidate.weights.items()}
        state = candidate.module().state_dict(keep_vars=True)
        return {named.get(state[name].data_ptr(), name): tensor for name, tensor in self._adapted(candidate).items()}

    def check(self, base: Any) -> None:
        """There are statistics to estimate, where that is asked for."""
        if self._args.batch_norm is not None and not any(name.endswith("running_mean") for name in base.tensors):
            raise InputError(
                f"The task {self._name!r} asks for args.batch_norm, but {base.source!r} has no batch-norm layer."
            )

    def _network_labels(self) -> np.ndarray:
        """Labels [n] as the network numbers its classes, as far as its config says; a fitted head takes the data's."""
        labels_n, wanted = np.array(self._images.y), self._args.label_map
        network = _network_classes(self._context) if self._args.refit_head is None else None
        self.class_names = class_titles(self._images.class_names, network, label_map=wanted)
        if network is not None:
            return network_labels(labels_n, self._images.class_names, network, label_map=wanted, task=self._name)
        if wanted not in (None, "by_number"):
            raise InputError(
                f"The task {self._name!r}: args.label_map needs a network whose config.json names its classes."
            )
        return labels_n

    def _load(self, dataset: DatasetConfig) -> Images:
        return load_images(dataset, self._context, mean=self._args.mean, std=self._args.std)

    def _adapted(self, candidate: Candidate) -> dict[str, torch.Tensor]:
        return self.adaptation.tensors(candidate, lambda images: self._feed(images, candidate.device))

    def _feed(self, images: Images, device: torch.device) -> ImageFeed:
        if images.key not in self._feeds:
            self._feeds[images.key] = ImageFeed(images, device, self._args.batch_size)
        return self._feeds[images.key]


def _network_classes(context: Context) -> list[str] | None:
    """What the network's config calls its classes; None when it says nothing of them."""
    config = network_config(context)
    if "id2label" in config or (network_class(context) or "").endswith("ForImageClassification"):
        return network_class_names(config)
    if config.get("label_names"):
        return [str(name) for name in config["label_names"]]
    count = context.classes or config.get("num_classes")
    return None if count is None else [str(number) for number in range(int(count))]
