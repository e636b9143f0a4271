"""Classes of texts, or of pairs of texts, with the network's own head."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mergecore.data.texts import Texts, load_texts
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Context, Measurement, parse_arguments, required_dataset
from mergecore.evaluators.batching import Batcher, BatchSize
from mergecore.evaluators.class_names import LabelMap, class_titles, network_class_names, network_labels
from mergecore.evaluators.classification import Classifier, measure_classifier
from mergecore.evaluators.networks import hidden_bytes, network_class, network_config

if TYPE_CHECKING:
    from mergecore.config import DatasetConfig, TaskConfig

READ_AT_THE_END = ("xlnet",)
"""Model types whose head reads the last position whatever stands there, so that padding must come first."""


class SequenceArguments(BaseModel):
    """``args`` of the evaluator."""

    model_config = ConfigDict(extra="forbid")

    batch_size: BatchSize = "auto"
    max_length: int | None = Field(None, ge=1, description="Longer texts are cut; default: what the network can read.")
    label_map: LabelMap | None = Field(
        None, description="'by_name', 'by_number', or the network's class (name or number) for each of the data set's."
    )


class SequenceClassification(Classifier):
    """Top-1 classification by a sequence classifier of transformers: BERT-like, GPT-2, Llama.

    Padding goes after the text, where no position and no causal attention depends on it, so that a text has the same
    logits alone and in any batch. Networks that look for the last token of a text do so by the padding token; one whose
    config names none is told the tokenizer's for the time of the pass.

    Attributes:
        class_names: of the network's classes, in order; None when nothing names or counts them.
    """

    metrics: ClassVar[tuple[str, ...] | None] = (
        "accuracy",
        "balanced_accuracy",
        "matthews_correlation",
        "f1",
        "cross_entropy",
    )
    version: ClassVar[int] = 1

    def __init__(self, task: TaskConfig, dataset: DatasetConfig | None, context: Context) -> None:
        dataset = required_dataset(task, dataset)
        self._args = parse_arguments(SequenceArguments, task)
        self._task, self._context = task, context
        config = network_config(context)
        self._texts = padded_for(config, load_texts(dataset, context, max_length=self._args.max_length))
        self.labels_n, classes = self._network_labels(config)
        if task.metric == "f1" and classes not in (2, None):
            raise InputError(f"The task {task.name!r} has {classes} classes, but f1 is measured for two.")
        # long texts first: a batch that does not fit memory is met at once; stable, so that batches never vary
        self._order_n = np.argsort(-self._texts.lengths, kind="stable")
        self._batcher: Batcher | None = None

    @property
    def key(self) -> str:
        """Content key of tokens, labels and code version; the batch size is no content."""
        labels = hashlib.sha256(self.labels_n.tobytes()).hexdigest()
        facts = ["sequence_classification", self.version, self._texts.key, labels]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def examples(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def evaluate(self, candidate: Candidate) -> Measurement:
        """One pass over the texts; every metric comes from the same logits."""
        if self._batcher is None:
            example_bytes = hidden_bytes(self._context, int(self._texts.lengths.max()))
            self._batcher = Batcher(self._args.batch_size, example_bytes=example_bytes, device=candidate.device)

        def logits_of(start: int, stop: int) -> torch.Tensor:
            return self.logits(candidate, self._order_n[start:stop])

        found = measure_classifier(logits_of, self.labels_n[self._order_n], batcher=self._batcher, task=self._task.name)
        if self._task.metric not in found.metrics:  # more than two classes, and no config.json said so
            raise InputError(f"The task {self._task.name!r} has no {self._task.metric}, which is for two classes.")
        return found

    def logits(self, candidate: Candidate, rows: np.ndarray) -> torch.Tensor:
        """Of these texts, as one batch."""
        return text_logits(candidate, self._texts, rows, task=self._task.name)

    def check(self, base: Any) -> None:
        """The network that the config describes is a sequence classifier."""
        name = network_class(self._context)
        of_adapter = self._context.classes is not None
        if name is not None and not of_adapter and not name.endswith("ForSequenceClassification"):
            raise InputError(
                f"The task {self._task.name!r} needs a network that classifies texts, but {self._context.base!r} is a "
                f"{name}.",
                "Say whose head measures it: 'head: …'.",
            )

    def _network_labels(self, config: dict[str, Any]) -> tuple[np.ndarray, int | None]:
        """Labels [n] as the network numbers its classes, and how many it has, as far as that is known."""
        labels_n = np.asarray(self._texts.y)
        if self._context.classes is not None:
            network = [f"LABEL_{number}" for number in range(self._context.classes)]
        elif (network_class(self._context) or "").endswith("ForSequenceClassification"):
            network = network_class_names(config)
        elif self._args.label_map in (None, "by_number"):
            self.class_names = self._texts.class_names
            return labels_n, None
        else:
            raise InputError(f"The task {self._task.name!r}: args.label_map needs a config.json that names classes.")
        names = self._texts.class_names
        self.class_names = class_titles(names, network, label_map=self._args.label_map)
        found = network_labels(labels_n, names, network, label_map=self._args.label_map, task=self._task.name)
        return found, len(network)


def padded_for(config: Mapping[str, Any], texts: Texts) -> Texts:
    """The texts, padded where the network that ``config`` describes is not disturbed by it."""
    return texts if config.get("model_type") in READ_AT_THE_END else replace(texts, padding_side="right")


def text_logits(candidate: Candidate, texts: Texts, rows: np.ndarray, *, task: str) -> torch.Tensor:
    """Logits [b, C] of some texts, as one batch.

    Raises:
        InputError: the network does not classify texts.
    """
    module = candidate.module()
    with _padding_token(module, texts.pad_id) as pad_id:
        inputs = texts.batch(rows, candidate.device)
        inputs["input_ids"].masked_fill_(inputs["attention_mask"] == 0, pad_id)
        inputs["attention_mask"][~inputs["attention_mask"].any(dim=1), 0] = 1  # without a token: one of padding
        with candidate.forward():
            logits_bC: torch.Tensor = module(**inputs).logits
    if logits_bC.ndim != 2:
        raise InputError(f"The task {task!r} is measured on a network that classifies no texts.")
    return logits_bC


@contextlib.contextmanager
def _padding_token(module: torch.nn.Module, default: int) -> Iterator[int]:
    """The token that the network takes for padding; a network whose config names none is told ``default`` meanwhile."""
    config: Any = getattr(module, "config", None)
    if config is None or config.pad_token_id is not None:
        yield default if config is None else int(config.pad_token_id)
        return
    config.pad_token_id = default
    try:
        yield default
    finally:
        config.pad_token_id = None
