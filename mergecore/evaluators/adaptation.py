"""What is fitted to each merged classifier before it is measured: batch-norm statistics, then its last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.func import functional_call

from mergecore.data.images import Images
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate
from mergecore.evaluators.batch_norm import estimate_statistics, norm_layers
from mergecore.evaluators.image_feed import ImageFeed
from mergecore.evaluators.linear_head import Method, features_into, fit_head, logits_of, output_layer


class BatchNormArguments(BaseModel):
    """Which images batch-norm statistics are estimated on."""

    model_config = ConfigDict(extra="forbid")

    split: str = "train"
    examples: int = Field(1024, ge=2, description="At most so many, a class-stratified draw.")
    batch_size: int = Field(
        128, ge=2, description="Every batch counts the same, so this one changes results; a rest is left out."
    )
    seed: int = Field(0, ge=0, description="Of the draw and of its order.")


class HeadArguments(BaseModel):
    """How the last linear layer is fitted."""

    model_config = ConfigDict(extra="forbid")

    split: str = "train"
    examples: int = Field(2048, ge=2, description="At most so many, a class-stratified draw with the dataset's seed.")
    method: Method = Field("closed_form", description="Least squares, or 'logistic', whose loss means something.")
    ridge: float = Field(1.0, gt=0, description="Penalty of the squared weights; as scikit-learn's Ridge, or 1/C.")


class FittedStatistics:
    """Batch-norm statistics from whole batches of training images in a seeded order.

    Files are often sorted by class, and a batch of one class is no sample.

    Args:
        arguments: see there.
        images: the draw.
        task: the task's name, for messages.
    """

    def __init__(self, arguments: BatchNormArguments, images: Images, task: str) -> None:
        self._size = min(arguments.batch_size, len(images))
        self._order = np.random.default_rng(arguments.seed).permutation(len(images))
        self._task = task
        self.images = images
        self.facts: Any = ["batch_norm", images.key, arguments.batch_size, arguments.seed]

    def tensors(self, candidate: Candidate, feed: ImageFeed) -> dict[str, torch.Tensor]:
        """By name in the network's state dict.

        Raises:
            InputError: the network has no batch-norm layer, or a batch does not fit in memory.
        """
        module = candidate.module()
        if not norm_layers(module):
            raise InputError(f"The task {self._task!r} asks for args.batch_norm, but the network has no such layer.")
        size = self._size

        def batch(number: int) -> torch.Tensor:
            return feed[np.sort(self._order[number * size : (number + 1) * size])]

        return estimate_statistics(candidate, module, len(self._order) // size, batch)


class FittedHead:
    """A last layer fitted to the merged network's features of training images.

    Args:
        arguments: see there.
        images: the draw.
    """

    def __init__(self, arguments: HeadArguments, images: Images) -> None:
        self._arguments = arguments
        self.images = images
        self.facts: Any = ["refit_head", images.key, arguments.method, arguments.ridge]

    def tensors(
        self, candidate: Candidate, adapted: dict[str, torch.Tensor], feed: ImageFeed
    ) -> dict[str, torch.Tensor]:
        """Weights, and biases where the layer has some, by name in the network's state dict.

        Args:
            candidate: the candidate.
            adapted: what has been fitted before.
            feed: of ``images``.

        Raises:
            InputError: the network does not end in a linear layer.
        """
        module = candidate.module()
        name = output_layer(candidate, module, feed[0:1])
        layer: Any = module.get_submodule(name)
        features: list[torch.Tensor] = []

        def collect(start: int, stop: int) -> torch.Tensor:
            features.clear()
            with features_into(module, name, features):
                adapted_logits(candidate, adapted, feed[start:stop])
            return features[0]

        features_nD = torch.cat(feed.batcher.map(len(feed), collect))
        labels_n = torch.from_numpy(np.array(self.images.y)).to(candidate.device)
        w_CD, b_C = fit_head(
            features_nD,
            labels_n,
            classes=max(int(labels_n.max()) + 1, len(self.images.class_names or ())),
            method=self._arguments.method,
            ridge=self._arguments.ridge,
            bias=layer.bias is not None,
        )
        fitted = {f"{name}.weight": w_CD, f"{name}.bias": b_C}
        return {own: fitted[own].to(tensor.dtype) for own, tensor in layer.named_parameters(prefix=name)}


class Adaptation:
    """What the arguments ask for, on the images they name; nothing when they ask for nothing.

    It works on tensors of its own: the candidate, whose tensors other tasks share, stays as it was merged.

    Args:
        norm: whether and how statistics are estimated.
        head: whether and how the last layer is fitted.
        draw: opens a split: (split, limit, seed or None for the dataset's) to images.
        task: the task's name, for messages.
    """

    def __init__(
        self,
        norm: BatchNormArguments | None,
        head: HeadArguments | None,
        draw: Callable[[str, int, int | None], Images],
        task: str,
    ) -> None:
        self._norm = self._head = None
        if norm is not None:
            self._norm = FittedStatistics(norm, draw(norm.split, norm.examples, norm.seed), task)
        if head is not None:
            self._head = FittedHead(head, draw(head.split, head.examples, None))

    @property
    def facts(self) -> list[Any]:
        """What changes results, as JSON."""
        return [part.facts for part in (self._norm, self._head) if part is not None]

    @property
    def images(self) -> list[Images]:
        """What is fitted on, in the order in which it was drawn."""
        return [part.images for part in (self._norm, self._head) if part is not None]

    def tensors(self, candidate: Candidate, feed: Callable[[Images], ImageFeed]) -> dict[str, torch.Tensor]:
        """By name in the network's state dict, what takes the place of the candidate's tensors."""
        adapted: dict[str, torch.Tensor] = {}
        if self._norm is not None:
            adapted |= self._norm.tensors(candidate, feed(self._norm.images))
        if self._head is not None:
            adapted |= self._head.tensors(candidate, adapted, feed(self._head.images))
        return adapted


def adapted_logits(candidate: Candidate, adapted: dict[str, torch.Tensor], images_bCHW: torch.Tensor) -> torch.Tensor:
    """Logits [b, C] of the candidate's network with other tensors in place of some of its own."""
    with candidate.forward():
        return logits_of(functional_call(candidate.module(), adapted, (images_bCHW,), tie_weights=False))
