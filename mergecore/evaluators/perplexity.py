"""How well a language model predicts a stream of tokens.

Windows of ``window`` tokens begin every ``stride`` tokens. Each is shown to the network at once, and predicts the token
after each of its own: token p of the stream is scored in the first window that reaches p - 1, so every token but the
first is scored exactly once, from more than ``window - stride`` and at most ``window`` tokens before it where there are
so many. It is the sliding window of the guide at https://huggingface.co/docs/transformers/perplexity, whose
``max_length`` counts the last token that is predicted too: ``window + 1``.

Shape suffixes: w windows, b windows of a batch, L tokens of a window, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mergecore.data.texts import load_token_stream
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Context, Evaluator, Measurement, parse_arguments, required_dataset
from mergecore.evaluators.batching import Batcher, BatchSize
from mergecore.evaluators.metrics import token_metrics
from mergecore.evaluators.networks import context_length, language_model_bytes, network_config, require_language_model

if TYPE_CHECKING:
    from mergecore.config import DatasetConfig, TaskConfig

LONGEST = 1024
"""Tokens of a window where the user does not say and the network could read more."""

FLOAT32_LOGITS = 1 << 24
"""Logits that are held in float32 at once, whatever the vocabulary."""


class PerplexityArguments(BaseModel):
    """``args`` of the evaluator."""

    model_config = ConfigDict(extra="forbid")

    batch_size: BatchSize = "auto"
    window: int | None = Field(None, ge=1, description=f"Tokens read at once; default: what fits, at most {LONGEST}.")
    stride: int | None = Field(None, ge=1, description="Tokens from window to window; default: no overlap.")
    max_tokens: int | None = Field(None, ge=2, description="Only the first tokens of the stream.")
    separator: str | None = Field(None, description="Between documents; default: the token for the end of a text.")


class TokenWindows:
    """The windows of a stream of tokens.

    Args:
        ids: [total] token numbers, at least two.
        window: tokens that the network reads at once.
        stride: tokens from window to window, at most ``window``.

    Attributes:
        tokens_w: how many tokens each window scores.
    """

    def __init__(self, ids: np.ndarray, *, window: int, stride: int) -> None:
        self._ids, self._window, self._stride = ids, window, stride
        further = math.ceil((len(ids) - 1 - window) / stride)
        self._begins_w = stride * np.arange(1 + max(0, further))
        self.tokens_w = np.diff(np.minimum(self._begins_w + window, len(ids) - 1), prepend=0)

    def __len__(self) -> int:
        return len(self._begins_w)

    def nats(self, candidate: Candidate, rows: np.ndarray) -> torch.Tensor:
        """[b] float64, the negative log-likelihoods of what each of these windows scores."""
        inputs_bL, targets_bL, scored_bL = self._tokens(self._begins_w[rows])
        module = candidate.module()
        with candidate.forward():
            logits_bLV = module(input_ids=inputs_bL.to(candidate.device), use_cache=False).logits
            return _sum_of_nats(logits_bLV, targets_bL.to(candidate.device), scored_bL)

    def _tokens(self, begins_b: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, list[slice]]:
        """Tokens and those after them, each [b, L], and which of the latter each window scores."""
        last = len(self._ids) - 1
        places_bL = begins_b[:, None] + np.arange(min(self._window, last))
        tokens_bL, after_bL = (
            torch.from_numpy(self._ids[np.minimum(places_bL + ahead, last)].astype(np.int64)) for ahead in (0, 1)
        )
        new = self._window - self._stride
        scored = [slice(new if begin else 0, min(self._window, last - begin)) for begin in begins_b.tolist()]
        return tokens_bL, after_bL, scored


class Perplexity(Evaluator):
    """Perplexity, loss in nats for each token, and bits for each byte of text, of a causal language model.

    Attributes:
        window: tokens that the network reads at once.
        stride: tokens from window to window.
    """

    metrics: ClassVar[tuple[str, ...] | None] = ("perplexity", "loss", "bits_per_byte")
    version: ClassVar[int] = 1

    def __init__(self, task: TaskConfig, dataset: DatasetConfig | None, context: Context) -> None:
        dataset = required_dataset(task, dataset)
        self._args = parse_arguments(PerplexityArguments, task)
        self._task, self._context = task, context
        self.window, self.stride = self._reach()
        stream = load_token_stream(dataset, context, separator=self._args.separator)
        self._ids: np.ndarray = stream.ids[: self._args.max_tokens]
        if len(self._ids) < 2 or not stream.bytes:
            raise InputError(f"The split {dataset.split!r} of {dataset.path!r} holds no text.")
        self._stream_key, self._documents = stream.key, len(stream.documents) - 1
        self._bytes_per_token = stream.bytes / (len(stream) - 1)  # of the whole stream: cut tokens have no bytes
        self._windows = TokenWindows(self._ids, window=self.window, stride=self.stride)
        self._batcher: Batcher | None = None

    @property
    def key(self) -> str:
        """Content key of tokens, windows and code version; the batch size is no content."""
        facts = ["perplexity", self.version, self._stream_key, len(self._ids), self.window, self.stride]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def examples(self) -> int:
        """Number of windows."""
        return len(self._windows)

    @property
    def rows(self) -> int:
        """Number of documents."""
        return self._documents

    def evaluate(self, candidate: Candidate) -> Measurement:
        """One pass over the windows."""
        if self._batcher is None:
            example_bytes = language_model_bytes(self._context, self.window)
            self._batcher = Batcher(self._args.batch_size, example_bytes=example_bytes, device=candidate.device)

        def nats(start: int, stop: int) -> torch.Tensor:
            return self._windows.nats(candidate, np.arange(start, stop))

        nats_w = torch.cat(self._batcher.map(self.examples, nats)).cpu().numpy()
        found = token_metrics(nats_w, self._windows.tokens_w, bytes_per_token=self._bytes_per_token)
        return Measurement(
            {name: value for name, (value, _) in found.items()},
            {name: error for name, (_, error) in found.items() if math.isfinite(error)},
            self.examples,
        )

    def loss(self, candidate: Candidate, rows: np.ndarray) -> torch.Tensor:
        """Nats for each token that these windows score."""
        with candidate.mode():
            return self._windows.nats(candidate, rows).sum() / float(self._windows.tokens_w[rows].sum())

    def check(self, base: Any) -> None:
        """The network predicts tokens, and knows all of these."""
        require_language_model(self._context, self._task.name, decoder_only=True)
        rows, highest = network_config(self._context).get("vocab_size"), int(self._ids.max())
        if rows is not None and highest >= rows:
            raise InputError(
                f"The task {self._task.name!r}: the tokenizer of {self._context.base!r} makes the token {highest}, but "
                f"its network has embeddings for {rows}."
            )

    def _reach(self) -> tuple[int, int]:
        """Window and stride in tokens."""
        longest = context_length(self._context)
        window = self._args.window or min(longest or LONGEST, LONGEST)
        if longest is not None and window > longest:
            raise InputError(
                f"The task {self._task.name!r}: args.window is {window}, but the network reads {longest} at most."
            )
        stride = self._args.stride or window
        if stride > window:
            raise InputError(
                f"The task {self._task.name!r}: args.stride {stride} is longer than the window of {window} tokens, "
                "so some would never be scored."
            )
        return window, stride


def _sum_of_nats(logits_bLV: torch.Tensor, targets_bL: torch.Tensor, scored_b: list[slice]) -> torch.Tensor:
    """[b] float64 sums of the negative log-likelihoods of the scored targets, in float32 a few rows at a time."""
    rows = max(1, FLOAT32_LOGITS // logits_bLV.shape[-1])
    sums = []
    for logits_LV, targets_L, scored in zip(logits_bLV, targets_bL, scored_b, strict=True):
        pieces = zip(logits_LV[scored].split(rows), targets_L[scored].split(rows), strict=True)
        nats = [torch.nn.functional.cross_entropy(own.float(), wanted, reduction="none") for own, wanted in pieces]
        sums.append(torch.cat(nats).double().sum())
    return torch.stack(sums)
