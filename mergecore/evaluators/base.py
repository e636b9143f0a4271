"""The evaluator interface and what an evaluator is given."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from mergecore.errors import InputError
from mergecore.registry import did_you_mean

if TYPE_CHECKING:
    from mergecore.config import DatasetConfig, TaskConfig

Arguments = TypeVar("Arguments", bound=BaseModel)


@dataclass(frozen=True)
class Candidate:
    """One merged model, alive in its worker's buffer until the next one is merged.

    Attributes:
        coefficients: [N] scaling coefficients.
        weights: the state dict; views that the next merge overwrites, so copy what is kept.
        module: builds (once) and returns the network whose parameters are those views, in evaluation mode, on
            ``device``, with the head of the task that is measured.
        device: where weights and network live.
        precision: what matrix products are computed in: "float32", or "bfloat16"/"float16" under autocast.
        merged: names in ``weights`` of the tensors that differ between candidates; None when unknown.
        gradients: whether forward passes keep what a backward pass needs.
    """

    coefficients: np.ndarray
    weights: Mapping[str, torch.Tensor]
    module: Callable[[], torch.nn.Module]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"
    merged: frozenset[str] | None = None
    gradients: bool = False

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """`mode`, and autocast when the precision asks for it; every forward pass runs inside."""
        with self.mode():
            if self.precision == "float32":
                yield
            else:
                with torch.autocast(self.device.type, dtype=getattr(torch, self.precision)):
                    yield

    def mode(self) -> contextlib.AbstractContextManager[Any]:
        """For what follows a forward pass: gradients where they are wanted, otherwise none at all."""
        return torch.enable_grad() if self.gradients else torch.inference_mode()


@dataclass(frozen=True)
class Context:
    """Where an evaluator finds what belongs to its study.

    Attributes:
        home: MERGECORE_HOME; decoded data is cached under it.
        base: the base checkpoint as the user wrote it, for messages.
        base_folder: folder with config, tokenizer and processor files of the base, if it has one.
        head_folder: folder of the fine-tuned model whose head measures this task; None when heads are merged or
            there are none.
        weights_key: content key of base, task vectors and head; what is derived from frozen weights is cached under
            it. Empty while a study is only checked.
        architecture: how the network is built when no config.json says so, such as "open_clip:ViT-B-32".
        classes: number of classes of the head, where the folder's config.json describes a network without it.
    """

    home: Path
    base: str = ""
    base_folder: Path | None = None
    head_folder: Path | None = None
    weights_key: str = ""
    architecture: str = ""
    classes: int | None = None

    @property
    def folder(self) -> Path | None:
        """The folder whose config.json describes the network that the task is measured on."""
        return self.head_folder or self.base_folder


@dataclass(frozen=True)
class Measurement:
    """What one evaluation found.

    Attributes:
        metrics: every metric of the pass, by name.
        noise: standard error of each metric where it is known.
        examples: number of examples seen; 0 when the evaluator does not say.
    """

    metrics: Mapping[str, float]
    noise: Mapping[str, float]
    examples: int = 0


class Evaluator(ABC):
    """Measures one task.

    An instance lives as long as its worker and may keep data and compiled functions.

    Class attributes:
        metrics: names it can measure in one pass, or None when the user names metrics of their own.
        version: raised whenever its numbers would change; part of the ledger's key.
        needs_network: whether it always calls ``candidate.module()``.
    """

    metrics: ClassVar[tuple[str, ...] | None]
    version: ClassVar[int]
    needs_network: ClassVar[bool] = True

    @abstractmethod
    def __init__(self, task: TaskConfig, dataset: DatasetConfig | None, context: Context) -> None:
        """Load what the task needs.

        Args:
            task: the task; ``task.dataset`` names the data for the search.
            dataset: the data to measure on; differs from ``task.dataset`` by split when held-out numbers are wanted.
            context: home folder, and where tokenizer and processor files lie.

        Raises:
            InputError: data or arguments cannot be used.
        """

    @property
    @abstractmethod
    def key(self) -> str:
        """Content key of data, arguments and code version, without the metric's name."""

    @property
    @abstractmethod
    def examples(self) -> int:
        """Number of examples of one evaluation; 0 when unknown."""

    @property
    def rows(self) -> int:
        """Number of the rows that were drawn from the dataset, which its ``limit`` bounds; 0 when it bounds nothing."""
        return self.examples

    @abstractmethod
    def evaluate(self, candidate: Candidate) -> Measurement:
        """Measure the candidate.

        Any exception becomes the recorded reason of a failed evaluation, except ``InputError``, which says that no
        candidate can be measured and ends the run.
        """

    def loss(self, candidate: Candidate, rows: np.ndarray) -> torch.Tensor:
        """Mean loss, to be minimised, of some examples on the network as it was merged; a scalar.

        Args:
            candidate: with ``gradients`` where the loss is to be differentiated.
            rows: [b] numbers of the examples, below ``examples``.

        Raises:
            InputError: this evaluator has no loss of single examples.
        """
        raise InputError(f"{type(self).__name__} has no loss that could be differentiated.")

    def logits(self, candidate: Candidate, rows: np.ndarray) -> torch.Tensor:
        """Logits [b, C] of some examples on the network as it was merged; arguments and errors as for `loss`."""
        raise InputError(f"{type(self).__name__} tells no classes apart, so it has no logits.")

    def adapted_tensors(self, candidate: Candidate) -> dict[str, torch.Tensor]:
        """What `evaluate` puts in the place of the candidate's tensors, so that an export can hold it.

        Returns:
            Name in ``candidate.weights`` to tensor, on the candidate's device; empty when the network is measured as it
            was merged. A fitted head has as many rows as the task has classes.
        """
        return {}

    def check(self, base: Any) -> None:  # noqa: B027
        """Raise ``InputError`` when the model in the checkpoint ``base`` does not suit this task; evaluate nothing."""


def required_dataset(task: TaskConfig, dataset: DatasetConfig | None) -> DatasetConfig:
    """``dataset``; ``InputError`` when the task names none."""
    if dataset is None:
        raise InputError(f"The task {task.name!r} names no dataset.", "Add 'dataset: {path: …, split: …}'.")
    return dataset


def parse_arguments(model: type[Arguments], task: TaskConfig) -> Arguments:
    """``task.args`` as the evaluator's own model; the first fault becomes an ``InputError`` that names its place."""
    try:
        return model.model_validate(task.args)
    except ValidationError as error:
        fault = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where = ".".join(["args", *map(str, fault["loc"])])
    if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
        hint = did_you_mean(str(fault["loc"][0]), model.model_fields)
        raise InputError(f"The task {task.name!r}: {task.evaluator} knows no {where}.", hint)
    message = fault["msg"].removeprefix("Value error, ").rstrip(".")
    raise InputError(f"The task {task.name!r}: {where}: {message}.")
