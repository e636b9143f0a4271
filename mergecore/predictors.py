"""Predictors: answers to new inputs of one task, by the network and the rules that its evaluator measures with.

A predictor needs none of the evaluator's data: what it does need is written beside it as plain JSON and arrays.

Shape suffixes: b inputs, C classes or channels, H and W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from mergecore.data.images import Images
from mergecore.data.texts import Texts
from mergecore.data.tokenizers import find_tokenizer
from mergecore.errors import InputError
from mergecore.evaluators.adaptation import Adaptation, adapted_logits
from mergecore.evaluators.base import Candidate, Context, parse_arguments
from mergecore.evaluators.batching import Batcher
from mergecore.evaluators.clip_towers import image_features, text_features, text_is_frozen
from mergecore.evaluators.image_classification import ImageArguments
from mergecore.evaluators.image_feed import ImageFeed
from mergecore.evaluators.networks import hidden_bytes, language_model_bytes, network_config
from mergecore.evaluators.perplexity import TokenWindows
from mergecore.evaluators.sequence_classification import SequenceArguments, padded_for, text_logits
from mergecore.measured import Measured
from mergecore.registry import Registry

PREDICTORS = Registry(
    "predictor",
    {
        "clip_zero_shot": "mergecore.predictors:ClipPredictor",
        "image_classification": "mergecore.predictors:ImagePredictor",
        "perplexity": "mergecore.predictors:TextScorer",
        "sequence_classification": "mergecore.predictors:TextPredictor",
    },
)
"""By the evaluator's name; those of other evaluators measure whole data sets and answer nothing."""


class Predictor(ABC):
    """Answers inputs of one task.

    Args:
        task: its name, for messages.
        facts: what `describe` gave.
        folder: where `describe` wrote arrays.
        context: folders with the network's config and tokenizer.
    """

    def __init__(self, task: str, facts: Mapping[str, Any], folder: Path, context: Context) -> None:
        self.task, self._facts, self._folder, self._context = task, facts, folder, context

    @staticmethod
    @abstractmethod
    def describe(item: Measured, folder: Path) -> dict[str, Any]:
        """What answers need of a task's evaluator, as plain JSON; arrays are written into ``folder``."""

    def prepare(self, candidate: Candidate) -> Any:
        """What is computed once for a candidate and serves all its answers."""
        return None

    @abstractmethod
    def predict(self, candidate: Candidate, prepared: Any, inputs: Any) -> pd.DataFrame:
        """One row for each input.

        Args:
            candidate: the merged network.
            prepared: by `prepare`, for this candidate.
            inputs: b of them.

        Raises:
            InputError: inputs of another kind or shape.
        """


def answers(logits_bC: torch.Tensor, names: Sequence[str] | None) -> pd.DataFrame:
    """The likeliest class of each input, by name and number, and the probability of every class (``p.<name>``).

    Args:
        logits_bC: of the network.
        names: of its classes; numbers take their place where there are none, or not one for each.
    """
    probabilities_bC = torch.softmax(logits_bC.double(), dim=1).cpu().numpy()
    classes = logits_bC.shape[1]
    named = names is not None and len(set(names)) == len(names) == classes
    titles = [str(name) for name in names] if named and names is not None else [str(n) for n in range(classes)]
    numbers_b = logits_bC.argmax(dim=1).cpu().numpy()
    columns: dict[str, Any] = {"class": [titles[number] for number in numbers_b], "number": numbers_b}
    return pd.DataFrame(columns | {f"p.{title}": probabilities_bC[:, c] for c, title in enumerate(titles)})


class _OfImages(Predictor):
    """Of images, preprocessed as the evaluator's are: [b, C, H, W], [b, H, W, C], or [b, H, W] where C is 1.

    They are bytes (0 to 255) where the evaluator's are, and otherwise the network's own floats.
    """

    def _feed(self, inputs: Any, device: torch.device) -> ImageFeed:
        facts = self._facts
        x = self._stored(inputs)
        images = Images(x, np.zeros(len(x), np.int64), tuple(facts["mean"]), tuple(facts["std"]), None, "")
        return ImageFeed(images, device, "auto")

    def _stored(self, inputs: Any) -> np.ndarray:
        shape = tuple(self._facts["shape"])
        channels, height, width = shape
        wanted = f"[b, {channels}, {height}, {width}] or [b, {height}, {width}, {channels}]"
        x = _numbers(inputs, self.task)
        if x.ndim == 3 and channels == 1:
            x = x[:, None]
        if x.ndim == 4 and x.shape[1:] != shape and x.shape[1:] == (height, width, channels):
            x = x.transpose(0, 3, 1, 2)
        if x.ndim != 4 or x.shape[1:] != shape or not len(x):
            raise InputError(f"The task {self.task!r} takes images of the shape {wanted}, not {list(x.shape)}.")
        if self._facts["dtype"] == "uint8":
            if x.min() < 0 or x.max() > 255 or (x != np.rint(x)).any():
                raise InputError(f"The task {self.task!r} takes bytes: whole numbers from 0 to 255.")
            return np.ascontiguousarray(x, dtype=np.uint8)
        return np.ascontiguousarray(x, dtype=np.float32)


class ImagePredictor(_OfImages):
    """Classes of images, with batch-norm statistics and head fitted to each merge where the evaluator does so."""

    def __init__(self, task: str, facts: Mapping[str, Any], folder: Path, context: Context) -> None:
        super().__init__(task, facts, folder, context)
        arguments = ImageArguments.model_validate(facts["adaptation"])
        drawn = iter([_read_images(folder, number, found) for number, found in enumerate(facts["drawn"])])
        self._adaptation = Adaptation(arguments.batch_norm, arguments.refit_head, lambda *_: next(drawn), task)

    @staticmethod
    def describe(item: Measured, folder: Path) -> dict[str, Any]:
        """Normalisation, class names, and the images that are fitted on."""
        evaluator: Any = item.evaluator()
        arguments = parse_arguments(ImageArguments, item.task)
        drawn = evaluator.adaptation.images
        return {
            **_image_facts(evaluator.images, evaluator.class_names),
            "adaptation": arguments.model_dump(mode="json", include={"batch_norm", "refit_head"}),
            "drawn": [_write_images(folder, number, images) for number, images in enumerate(drawn)],
        }

    def prepare(self, candidate: Candidate) -> dict[str, torch.Tensor]:
        """Statistics and head, by name in the network's state dict."""
        return self._adaptation.tensors(candidate, lambda images: ImageFeed(images, candidate.device, "auto"))

    def predict(self, candidate: Candidate, prepared: Any, inputs: Any) -> pd.DataFrame:
        """Classes and their probabilities."""
        feed = self._feed(inputs, candidate.device)
        found = feed.batcher.map(len(feed), lambda start, stop: adapted_logits(candidate, prepared, feed[start:stop]))
        return answers(torch.cat(found), self._facts["classes"])


class ClipPredictor(_OfImages):
    """Classes of images by their prompts, as tokens that were made once: no tokenizer is needed."""

    def __init__(self, task: str, facts: Mapping[str, Any], folder: Path, context: Context) -> None:
        super().__init__(task, facts, folder, context)
        self._tokens = load_file(folder / "prompts.safetensors")
        self._frozen_CD: torch.Tensor | None = None

    @staticmethod
    def describe(item: Measured, folder: Path) -> dict[str, Any]:
        """Normalisation, class names, and tokens of the prompts."""
        evaluator: Any = item.evaluator()
        tokens = {name: values.contiguous() for name, values in evaluator.prompt_tokens().items()}
        save_file(tokens, folder / "prompts.safetensors")
        return _image_facts(evaluator.images, evaluator.class_names)

    def prepare(self, candidate: Candidate) -> torch.Tensor:
        """Text features times exp(logit_scale), [C, D]; features are computed once where no candidate changes them."""
        features_CD = self._frozen_CD
        if features_CD is None:
            features_CD = self._encode(candidate)
            if text_is_frozen(candidate):
                self._frozen_CD = features_CD
        with candidate.mode():
            scale: Any = candidate.module().logit_scale
            return features_CD * scale.float().exp()

    def predict(self, candidate: Candidate, prepared: Any, inputs: Any) -> pd.DataFrame:
        """Classes and their probabilities."""
        feed, module = self._feed(inputs, candidate.device), candidate.module()

        def logits_of(start: int, stop: int) -> torch.Tensor:
            features_bD = image_features(candidate, module, feed[start:stop])
            with candidate.mode():
                return features_bD @ prepared.T

        return answers(torch.cat(feed.batcher.map(len(feed), logits_of)), self._facts["classes"])

    def _encode(self, candidate: Candidate) -> torch.Tensor:
        sentence_bytes = next(iter(self._tokens.values())).shape[1] << 11  # of the widest activation, roughly
        batcher = Batcher("auto", example_bytes=sentence_bytes, device=candidate.device)
        classes = len(self._facts["classes"])
        return text_features(candidate, candidate.module(), self._tokens, classes=classes, batcher=batcher)


class TextPredictor(Predictor):
    """Classes of texts, or of pairs of texts."""

    def __init__(self, task: str, facts: Mapping[str, Any], folder: Path, context: Context) -> None:
        super().__init__(task, facts, folder, context)
        self._tokenizer = find_tokenizer(context).load()

    @staticmethod
    def describe(item: Measured, folder: Path) -> dict[str, Any]:
        """Class names, and where texts are cut."""
        evaluator: Any = item.evaluator()
        longest = parse_arguments(SequenceArguments, item.task).max_length
        return {"classes": evaluator.class_names, "max_length": longest}

    def predict(self, candidate: Candidate, prepared: Any, inputs: Any) -> pd.DataFrame:
        """Classes and their probabilities."""
        texts = self._tokenised(_texts(inputs, self.task, pairs=True))
        example_bytes = hidden_bytes(self._context, int(texts.lengths.max()))
        batcher = Batcher("auto", example_bytes=example_bytes, device=candidate.device)

        def logits_of(start: int, stop: int) -> torch.Tensor:
            return text_logits(candidate, texts, np.arange(start, stop), task=self.task)

        return answers(torch.cat(batcher.map(len(texts), logits_of)).float(), self._facts["classes"])

    def _tokenised(self, columns: list[list[str]]) -> Texts:
        tokenizer = self._tokenizer
        encoded = tokenizer.encode(columns, tokenizer.longest(self._facts["max_length"]))
        rows = encoded["input_ids"]
        types = encoded["token_type_ids"] if tokenizer.has_types else None
        texts = Texts(
            ids=np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]),
            offsets=np.cumsum([0, *map(len, rows)]),
            types=None if types is None else np.concatenate([np.asarray(row, dtype=np.int8) for row in types]),
            y=np.zeros(len(rows), dtype=np.int64),
            pad_id=tokenizer.pad_id,
            padding_side=tokenizer.padding_side,
            class_names=None,
            key="",
        )
        return padded_for(network_config(self._context), texts)


class TextScorer(Predictor):
    """How well a language model predicts each text by itself, in the windows of the evaluator."""

    def __init__(self, task: str, facts: Mapping[str, Any], folder: Path, context: Context) -> None:
        super().__init__(task, facts, folder, context)
        self._tokenizer = find_tokenizer(context).load()

    @staticmethod
    def describe(item: Measured, folder: Path) -> dict[str, Any]:
        """Window and stride in tokens."""
        evaluator: Any = item.evaluator()
        return {"window": evaluator.window, "stride": evaluator.stride}

    def predict(self, candidate: Candidate, prepared: Any, inputs: Any) -> pd.DataFrame:
        """Nats for each token that is predicted, their number, and the perplexity."""
        (texts,) = _texts(inputs, self.task, pairs=False)
        scored = [self._score(candidate, tokens, number) for number, tokens in enumerate(self._tokenizer.plain(texts))]
        nats_b, tokens_b = np.array([nats for nats, _ in scored]), np.array([count for _, count in scored])
        with np.errstate(over="ignore"):
            perplexity_b = np.exp(nats_b / tokens_b)
        return pd.DataFrame({"nats_per_token": nats_b / tokens_b, "tokens": tokens_b, "perplexity": perplexity_b})

    def _score(self, candidate: Candidate, tokens: np.ndarray, number: int) -> tuple[float, int]:
        """Sum of nats of one text, and how many tokens they are of."""
        ids = np.concatenate([self._tokenizer.start, tokens])
        if len(ids) < 2:
            raise InputError(f"The task {self.task!r}: the text {number} has no token that could be predicted.")
        windows = TokenWindows(ids, window=self._facts["window"], stride=self._facts["stride"])
        example_bytes = language_model_bytes(self._context, min(self._facts["window"], len(ids)))
        batcher = Batcher("auto", example_bytes=example_bytes, device=candidate.device)
        found = batcher.map(len(windows), lambda start, stop: windows.nats(candidate, np.arange(start, stop)))
        return float(torch.cat(found).sum()), int(windows.tokens_w.sum())


def _numbers(inputs: Any, task: str) -> np.ndarray:
    """As an array of finite numbers; bytes stay bytes."""
    try:
        x = np.asarray(inputs)
        x = x if x.dtype == np.uint8 else x.astype(np.float64)
    except (ValueError, TypeError):
        raise InputError(f"The task {task!r} takes images, but these inputs are no array of numbers.") from None
    if not np.isfinite(x).all():
        raise InputError(f"The task {task!r}: an image holds a number that is not finite.")
    return x


def _texts(inputs: Any, task: str, *, pairs: bool) -> list[list[str]]:
    """One column of texts, or two of pairs."""
    rows = inputs.tolist() if isinstance(inputs, np.ndarray) else inputs
    rows = list(rows) if isinstance(rows, list | tuple) else [rows]
    rows = [row if isinstance(row, list | tuple) else [row] for row in rows]
    width = {len(row) for row in rows}
    if (
        len(width) != 1
        or not width <= ({1, 2} if pairs else {1})
        or not all(isinstance(t, str) for r in rows for t in r)
    ):
        raise InputError(f"The task {task!r} takes a list of texts{', or of pairs of texts' if pairs else ''}.")
    return [list(column) for column in zip(*rows, strict=True)]


def _image_facts(images: Images, classes: Sequence[str] | None) -> dict[str, Any]:
    return {
        "classes": None if classes is None else list(classes),
        "shape": list(images.x.shape[1:]),
        "dtype": str(images.x.dtype),
        "mean": list(images.mean),
        "std": list(images.std),
    }


def _write_images(folder: Path, number: int, images: Images) -> dict[str, Any]:
    np.save(folder / f"{number}-x.npy", images.x)
    np.save(folder / f"{number}-y.npy", images.y)
    return {**_image_facts(images, images.class_names), "key": images.key}


def _read_images(folder: Path, number: int, facts: Mapping[str, Any]) -> Images:
    x, y = (np.load(folder / f"{number}-{axis}.npy", mmap_mode="r", allow_pickle=False) for axis in "xy")
    names = facts["classes"]
    return Images(
        x, y, tuple(facts["mean"]), tuple(facts["std"]), None if names is None else tuple(names), facts["key"]
    )
