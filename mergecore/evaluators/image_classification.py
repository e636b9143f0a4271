"""Accuracy and cross-entropy of an image classifier, if wanted after adapting it to the merged weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.func import functional_call

from mergecore.data.images import Images, load_images
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Context, Evaluator, Measurement, parse_arguments
from mergecore.evaluators.batch_norm import estimate_statistics, norm_layers
from mergecore.evaluators.batching import Batcher, BatchSize, is_out_of_memory
from mergecore.evaluators.classification import measure_classifier
from mergecore.evaluators.linear_head import Method, features_into, fit_head, logits_of, output_layer

if TYPE_CHECKING:
    from mergecore.config import DatasetConfig, TaskConfig


class BatchNormArguments(BaseModel):
    """Which images batch-norm statistics are estimated on, after each merge."""

    model_config = ConfigDict(extra="forbid")

    split: str = "train"
    examples: int = Field(1024, ge=2, description="At most so many, a class-stratified draw.")
    batch_size: int = Field(
        128, ge=2, description="Every batch counts the same, so this one changes results; a rest is left out."
    )
    seed: int = Field(0, ge=0, description="Of the draw and of its order.")


class HeadArguments(BaseModel):
    """How the last linear layer is fitted again, after each merge."""

    model_config = ConfigDict(extra="forbid")

    split: str = "train"
    examples: int = Field(2048, ge=2, description="At most so many, a class-stratified draw with the dataset's seed.")
    method: Method = Field("closed_form", description="Least squares, or 'logistic', whose loss means something.")
    ridge: float = Field(1.0, gt=0, description="Penalty of the squared weights; as scikit-learn's Ridge, or 1/C.")


class ImageArguments(BaseModel):
    """``args`` of the evaluator."""

    model_config = ConfigDict(extra="forbid")

    batch_size: BatchSize = "auto"
    mean: tuple[float, ...] = Field((), description="Per channel, subtracted after scaling bytes to [0, 1].")
    std: tuple[float, ...] = Field((), description="Per channel, divided by.")
    batch_norm: BatchNormArguments | None = None
    refit_head: HeadArguments | None = None


class ImageClassification(Evaluator):
    """Top-1 classification with the network's own head, or one fitted to the merged features.

    Adaptation (``batch_norm`` first, then ``refit_head``) works on tensors of its own: the candidate stays as merged.
    """

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
        norm, head = self._args.batch_norm, self._args.refit_head
        self._norm_images = self._head_images = None
        if norm is not None:
            drawn = {"split": norm.split, "limit": norm.examples, "seed": norm.seed}
            self._norm_images = self._load(dataset.model_copy(update=drawn))
        if head is not None:
            self._head_images = self._load(dataset.model_copy(update={"split": head.split, "limit": head.examples}))

    @property
    def key(self) -> str:
        """Content key of data, normalisation, adaptation and code version; the batch size is no content."""
        norm, head = self._args.batch_norm, self._args.refit_head
        facts: list[Any] = ["image_classification", self.version, self._images.key, self._args.mean, self._args.std]
        if norm is not None and self._norm_images is not None:
            facts.append(["batch_norm", self._norm_images.key, norm.batch_size, norm.seed])
        if head is not None and self._head_images is not None:
            facts.append(["refit_head", self._head_images.key, head.method, head.ridge])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def examples(self) -> int:
        """Number of images that are measured on."""
        return len(self._images)

    def evaluate(self, candidate: Candidate) -> Measurement:
        """One pass over the images; accuracy, balanced accuracy and cross-entropy come from the same logits."""
        module, adapted = candidate.module(), self._adapted(candidate)

        def logits(start: int, stop: int) -> torch.Tensor:
            images_bCHW = self._images.batch(start, stop, candidate.device)
            return _logits(candidate, module, adapted, images_bCHW)

        batcher = self._batcher(self._images, candidate.device)
        return measure_classifier(logits, self._images.y, batcher=batcher, task=self._name)

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

    def _batcher(self, images: Images, device: torch.device) -> Batcher:
        example_bytes = 4 * int(np.prod(images.x.shape[1:]))
        return Batcher(self._args.batch_size, example_bytes=example_bytes, device=device)

    def _adapted(self, candidate: Candidate) -> dict[str, torch.Tensor]:
        """By name in the network's state dict, what takes the place of the candidate's tensors."""
        adapted: dict[str, torch.Tensor] = {}
        if self._norm_images is not None:
            adapted |= self._estimate_norm(candidate, self._norm_images)
        if self._head_images is not None:
            adapted |= self._refit_head(candidate, adapted, self._head_images)
        return adapted

    def _estimate_norm(self, candidate: Candidate, images: Images) -> dict[str, torch.Tensor]:
        module = candidate.module()
        if not norm_layers(module):
            raise InputError(f"The task {self._name!r} asks for args.batch_norm, but the network has no such layer.")
        try:
            return estimate_statistics(candidate, module, self._norm_batches(images, candidate.device))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"The task {self._name!r}: a batch of args.batch_norm does not fit in memory.",
                "Set a smaller args.batch_norm.batch_size; it is not changed silently, because it changes results.",
            ) from error

    def _norm_batches(self, images: Images, device: torch.device) -> Iterator[torch.Tensor]:
        """Whole batches in a seeded order: files are often sorted by class, and a batch of one class is no sample."""
        assert self._args.batch_norm is not None
        order = np.random.default_rng(self._args.batch_norm.seed).permutation(len(images))
        size = min(self._args.batch_norm.batch_size, len(order))
        for start in range(0, len(order) - size + 1, size):
            chosen = np.sort(order[start : start + size])
            yield replace(images, x=images.x[chosen], y=images.y[chosen]).batch(0, size, device)

    def _refit_head(
        self, candidate: Candidate, adapted: dict[str, torch.Tensor], images: Images
    ) -> dict[str, torch.Tensor]:
        assert self._args.refit_head is not None
        module, device = candidate.module(), candidate.device
        name = output_layer(candidate, module, images.batch(0, 1, device))
        layer: Any = module.get_submodule(name)
        features: list[torch.Tensor] = []

        def collect(start: int, stop: int) -> torch.Tensor:
            features.clear()
            with features_into(module, name, features):
                _logits(candidate, module, adapted, images.batch(start, stop, device))
            return features[0]

        features_nD = torch.cat(self._batcher(images, device).map(len(images), collect))
        labels_n = torch.from_numpy(np.array(images.y, dtype=np.int64)).to(device)
        classes = max(int(labels_n.max()) + 1, len(images.class_names or ()))
        method, ridge = self._args.refit_head.method, self._args.refit_head.ridge
        bias = layer.bias is not None
        w_CD, b_C = fit_head(features_nD, labels_n, classes=classes, method=method, ridge=ridge, bias=bias)
        fitted = {f"{name}.weight": w_CD.to(layer.weight.dtype)}
        return fitted | ({f"{name}.bias": b_C.to(layer.weight.dtype)} if bias else {})


def _logits(
    candidate: Candidate, module: torch.nn.Module, adapted: dict[str, torch.Tensor], images_bCHW: torch.Tensor
) -> torch.Tensor:
    with candidate.inference():
        return logits_of(functional_call(module, adapted, (images_bCHW,), tie_weights=False))
