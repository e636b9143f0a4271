"""Zero-shot classification of images by CLIP: the class is the prompt whose text features are nearest."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mergecore.data.cache import build_once
from mergecore.data.images import Images, load_images
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Context, Measurement, parse_arguments, required_dataset
from mergecore.evaluators.batching import Batcher, BatchSize
from mergecore.evaluators.classification import Classifier, measure_classifier
from mergecore.evaluators.clip_towers import (
    image_features,
    text_features,
    text_is_frozen,
    tokenize,
    tokenizer_facts,
)
from mergecore.evaluators.image_feed import ImageFeed
from mergecore.evaluators.prompts import prompt_table

if TYPE_CHECKING:
    from mergecore.config import DatasetConfig, TaskConfig

PLAIN = ("a photo of a {}.",)
BYTES_PER_TOKEN = 1 << 11
"""Of one token in the widest activation of a text tower, roughly; sets the size of text batches."""


class ClipArguments(BaseModel):
    """``args`` of the evaluator."""

    model_config = ConfigDict(extra="forbid")

    class_names: list[str] | str | None = Field(
        None, description="In label order, or a data set whose table is used ('sun397'); default: the data set's own."
    )
    templates: list[str] | str = Field(
        list(PLAIN), description="Each with one {} for the class name, or a data set whose table is used."
    )
    batch_size: BatchSize = "auto"


class ClipZeroShot(Classifier):
    """Accuracy and cross-entropy of softmax(exp(logit_scale) · cos(image, class)) (Radford et al. 2021, CLIP).

    A class's text features are the mean of its prompts' normalised features, normalised again. Where no tensor of the
    text tower is merged, they are computed once for all candidates, workers and runs.
    """

    metrics: ClassVar[tuple[str, ...] | None] = ("accuracy", "balanced_accuracy", "cross_entropy")
    version: ClassVar[int] = 1

    def __init__(self, task: TaskConfig, dataset: DatasetConfig | None, context: Context) -> None:
        dataset = required_dataset(task, dataset)
        self._args = parse_arguments(ClipArguments, task)
        self._name, self._context = task.name, context
        self._images = load_images(dataset, context)
        self._classes = self._class_names(dataset.path)
        self._templates = self._template_list()
        self._tokenizer_facts = tokenizer_facts(context)
        self._frozen_CD: torch.Tensor | None = None
        self._tokens: dict[str, torch.Tensor] = {}
        self._text_batcher: Batcher | None = None
        self._feed: ImageFeed | None = None

    @property
    def key(self) -> str:
        """Content key of data, prompts, tokenizer and code version; the batch size is no content."""
        facts = ["clip_zero_shot", self.version, self._images.key, self._prompt_facts]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def images(self) -> Images:
        """What is measured on."""
        return self._images

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return tuple(self._classes)

    def prompt_tokens(self) -> dict[str, torch.Tensor]:
        """Arguments of the text tower for every template of the first class, then of the second, and so on."""
        sentences = [template.replace("{}", name) for name in self._classes for template in self._templates]
        return tokenize(self._context, sentences)

    @property
    def examples(self) -> int:
        """Number of images."""
        return len(self._images)

    def evaluate(self, candidate: Candidate) -> Measurement:
        """One pass over the images."""
        module = candidate.module()
        head_CD, feed = self._head(candidate, module), self._feed_on(candidate.device)

        def logits_of(start: int, stop: int) -> torch.Tensor:
            return self._similarities(candidate, module, feed[start:stop], head_CD)

        return measure_classifier(logits_of, self._images.y, batcher=feed.batcher, task=self._name)

    def logits(self, candidate: Candidate, rows: np.ndarray) -> torch.Tensor:
        """Cosines of these images and every class, times exp(logit_scale)."""
        module = candidate.module()
        images_bCHW = self._feed_on(candidate.device)[rows]
        return self._similarities(candidate, module, images_bCHW, self._head(candidate, module))

    def check(self, base: Any) -> None:
        """The base must be a CLIP."""
        if not any(name.endswith("logit_scale") for name in base.tensors):
            raise InputError(
                f"The task {self._name!r}: {base.source!r} is no CLIP, it has no tensor 'logit_scale'.",
                "Measure a classifier with its own head with 'evaluator: image_classification'.",
            )

    @property
    def labels_n(self) -> np.ndarray:  # type: ignore[override]
        """[n], as the data set numbers them."""
        return np.asarray(self._images.y)

    def _feed_on(self, device: torch.device) -> ImageFeed:
        if self._feed is None:
            self._feed = ImageFeed(self._images, device, self._args.batch_size)
        return self._feed

    def _similarities(
        self, candidate: Candidate, module: torch.nn.Module, images_bCHW: torch.Tensor, head_CD: torch.Tensor
    ) -> torch.Tensor:
        features_bD = image_features(candidate, module, images_bCHW)
        with candidate.mode():
            return features_bD @ head_CD.T

    def _head(self, candidate: Candidate, module: torch.nn.Module) -> torch.Tensor:
        """Text features times exp(logit_scale): [classes, D]."""
        if not text_is_frozen(candidate):
            features_CD = self._encode(candidate, module)
        else:
            if self._frozen_CD is None:
                self._frozen_CD = self._from_cache(candidate, module)
            features_CD = self._frozen_CD
        with candidate.mode():
            scale: Any = module.logit_scale
            return features_CD * scale.float().exp()

    def _from_cache(self, candidate: Candidate, module: torch.nn.Module) -> torch.Tensor:
        if not self._context.weights_key:  # nothing says which text tower it is
            return self._encode(candidate, module)
        facts = [
            "text features",
            self._context.weights_key,
            self._prompt_facts,
            [candidate.precision, candidate.device.type, torch.get_num_threads()],  # all that can change the last bits
            [version(name) for name in ("torch", "transformers", "open_clip_torch")],
        ]

        def build(folder: Path) -> dict[str, Any]:
            np.save(folder / "features.npy", self._encode(candidate, module).cpu().numpy())
            return {}

        entry = build_once(self._context.home, facts, build)
        return torch.from_numpy(np.array(entry.array("features"))).to(candidate.device)

    def _encode(self, candidate: Candidate, module: torch.nn.Module) -> torch.Tensor:
        if self._text_batcher is None:
            self._tokens = self.prompt_tokens()
            sentence_bytes = BYTES_PER_TOKEN * next(iter(self._tokens.values())).shape[1]
            self._text_batcher = Batcher(self._args.batch_size, example_bytes=sentence_bytes, device=candidate.device)
        return text_features(candidate, module, self._tokens, classes=len(self._classes), batcher=self._text_batcher)

    @property
    def _prompt_facts(self) -> Any:
        return [self._classes, self._templates, self._tokenizer_facts]

    def _class_names(self, path: str) -> list[str]:
        wanted, own = self._args.class_names, self._images.class_names
        if isinstance(wanted, str):
            names = list(prompt_table(wanted).class_names)
        elif wanted is not None:
            names = wanted
        elif own:
            names = list(own)
        else:
            raise InputError(
                f"The task {self._name!r}: the data set {path!r} does not say what its classes are called.",
                "List them in args.class_names, or name a table there.",
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"The task {self._name!r}: two classes are called {twice[0]!r}.")
        expected = len(own) if own else int(np.max(self._images.y)) + 1
        if len(names) < expected or (own and len(names) != expected):
            raise InputError(
                f"The task {self._name!r} has {len(names)} class names, but the data set {path!r} {expected} classes."
            )
        places = {name: number for number, name in enumerate(own or ())}
        moved = next((name for number, name in enumerate(names) if places.get(name, number) != number), None)
        if moved is not None:
            raise InputError(
                f"The task {self._name!r}: {moved!r} is class {places[moved]} of the data set {path!r}, but number "
                f"{names.index(moved)} of args.class_names.",
                "List them in the order of the labels.",
            )
        return names

    def _template_list(self) -> list[str]:
        wanted = self._args.templates
        templates = list(prompt_table(wanted).templates) if isinstance(wanted, str) else wanted
        for template in templates:
            if template.count("{}") != 1:
                raise InputError(
                    f"The task {self._name!r}: the template {template!r} must hold {{}} once, for the class name."
                )
        if not templates:
            raise InputError(f"The task {self._name!r}: args.templates is empty.")
        return templates
