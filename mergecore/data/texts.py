"""Texts as every evaluation reads them: token numbers in memory-mapped arrays.

Shape suffixes: n texts, b texts of a batch, L tokens of the longest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergecore.data.arrays import ArrayWriter
from mergecore.data.cache import build_once, count_decoded
from mergecore.data.columns import labels, text_columns
from mergecore.data.sources import find_source
from mergecore.data.subsets import stratified, uniform
from mergecore.data.tokenizers import find_tokenizer
from mergecore.errors import InputError

if TYPE_CHECKING:
    from mergecore.config import DatasetConfig
    from mergecore.evaluators.base import Context

FORMAT = 1
CHUNK = 1024
"""Texts that are tokenised before they are written."""


@dataclass(frozen=True)
class Texts:
    """Labelled texts, or pairs of texts, as token numbers.

    Attributes:
        ids: [total] int32 tokens of all texts one after the other, memory-mapped.
        offsets: [n + 1] int64; text i is ``ids[offsets[i] : offsets[i + 1]]``.
        types: [total] int8, which text of a pair a token belongs to; None when the tokenizer does not say.
        y: [n] int64 class numbers.
        pad_id: the token that fills short texts up.
        padding_side: "left" or "right".
        class_names: in the order of the class numbers, where the data set says them.
        key: content key of everything above.
    """

    ids: np.ndarray
    offsets: np.ndarray
    types: np.ndarray | None
    y: np.ndarray
    pad_id: int
    padding_side: str
    class_names: tuple[str, ...] | None
    key: str

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def lengths(self) -> np.ndarray:
        """[n] tokens of each text."""
        return np.diff(self.offsets)

    def batch(self, indices: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Arguments of the network for some texts, each [b, L], padded to the longest of them.

        ``input_ids`` and ``attention_mask``, and ``token_type_ids`` where the tokenizer makes them.
        """
        indices = np.asarray(indices)
        lengths_b = self.lengths[indices]
        shape = (len(indices), max(int(lengths_b.max()), 1))
        found = {
            "input_ids": np.full(shape, self.pad_id, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
        }
        if self.types is not None:
            found["token_type_ids"] = np.zeros(shape, dtype=np.int64)
        for row, (index, length) in enumerate(zip(indices, lengths_b, strict=True)):
            place = slice(shape[1] - length, None) if self.padding_side == "left" else slice(length)
            stored = slice(self.offsets[index], self.offsets[index + 1])
            found["input_ids"][row, place] = self.ids[stored]
            found["attention_mask"][row, place] = 1
            if self.types is not None:
                found["token_type_ids"][row, place] = self.types[stored]
        return {name: torch.from_numpy(array).to(device) for name, array in found.items()}


@dataclass(frozen=True)
class TokenStream:
    """Documents as one stream of tokens.

    Attributes:
        ids: [total] int32, memory-mapped: a start token where the tokenizer sets one, then every document's tokens,
            the separator's between two documents.
        documents: [d + 1] int64; document i begins at ``documents[i]``, the last entry is ``total``.
        characters: of all documents, separators not counted.
        bytes: in UTF-8, likewise.
        words: runs of characters without white space, likewise.
        key: content key of everything above.
    """

    ids: np.ndarray
    documents: np.ndarray
    characters: int
    bytes: int
    words: int
    key: str

    def __len__(self) -> int:
        return len(self.ids)


def load_texts(dataset: DatasetConfig, context: Context, *, max_length: int | None = None) -> Texts:
    """Open the texts of one split, from the cache when they were tokenised before.

    Args:
        dataset: where they are, which split, how many; two columns that belong together become pairs.
        context: home folder, and the checkpoint whose tokenizer is used.
        max_length: longer ones are cut as the tokenizer does, as they are at what the network can read.

    Raises:
        InputError: data, columns, labels or tokenizer cannot be used.
    """
    source, found = find_source(dataset, context.home), find_tokenizer(context)
    facts = ["texts", FORMAT, source.facts, dataset.split, dataset.limit, dataset.seed, dataset.columns.model_dump()]

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = found.load()
        limit = tokenizer.longest(max_length)
        offsets = [0]
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            table = source.open(dataset.split, Path(scratch))
            y, names = labels(table, dataset)
            columns = text_columns(table.rows, dataset, pairs=True)
            chosen = stratified(y, dataset.limit, dataset.seed)
            rows = table.rows.select(chosen).select_columns(list(columns))
            np.save(folder / "y.npy", y[chosen])
            with ArrayWriter(folder / "ids.npy", np.int32) as ids, ArrayWriter(folder / "types.npy", np.int8) as types:
                for start in range(0, len(rows), CHUNK):
                    chunk = rows[start : start + CHUNK]
                    encoded = tokenizer.encode([strings(chunk[name], name, dataset) for name in columns], limit)
                    for text in encoded["input_ids"]:
                        offsets.append(offsets[-1] + len(text))
                    ids.append(np.concatenate([np.asarray(text, dtype=np.int32) for text in encoded["input_ids"]]))
                    if tokenizer.has_types:
                        types.append(np.concatenate(encoded["token_type_ids"]))
                    count_decoded(len(encoded["input_ids"]))
        if not tokenizer.has_types:
            (folder / "types.npy").unlink()
        np.save(folder / "offsets.npy", np.array(offsets))
        return {
            "pad_id": tokenizer.pad_id,
            "padding_side": tokenizer.padding_side,
            "types": tokenizer.has_types,
            "class_names": names,
        }

    entry = build_once(context.home, [*facts, found.facts, max_length], build)
    meta = entry.meta
    return Texts(
        entry.array("ids"),
        entry.array("offsets"),
        entry.array("types") if meta["types"] else None,
        entry.array("y"),
        meta["pad_id"],
        meta["padding_side"],
        None if meta["class_names"] is None else tuple(meta["class_names"]),
        entry.key,
    )


def load_token_stream(dataset: DatasetConfig, context: Context, *, separator: str | None = None) -> TokenStream:
    """Open one split as a stream of tokens, from the cache when it was tokenised before.

    Args:
        dataset: where the documents are, which split, how many (a draw that keeps their order); labels play no part.
        context: home folder, and the checkpoint whose tokenizer is used.
        separator: what stands between two documents; None: the tokenizer's token for the end of a text.

    Raises:
        InputError: data, columns or tokenizer cannot be used.
    """
    source, found = find_source(dataset, context.home), find_tokenizer(context)
    facts = ["stream", FORMAT, source.facts, dataset.split, dataset.limit, dataset.seed, dataset.columns.text]

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = found.load()
        between = tokenizer.separator(separator)
        counts = {"characters": 0, "bytes": 0, "words": 0}
        with tempfile.TemporaryDirectory(dir=folder) as scratch, ArrayWriter(folder / "ids.npy", np.int32) as ids:
            rows = source.open(dataset.split, Path(scratch)).rows
            (column,) = text_columns(rows, dataset, pairs=False)
            rows = rows.select(uniform(len(rows), dataset.limit, dataset.seed)).select_columns([column])
            ids.append(tokenizer.start)
            documents = [len(tokenizer.start)]
            for start in range(0, len(rows), CHUNK):
                texts = strings(rows[start : start + CHUNK][column], column, dataset)
                for text, tokens in zip(texts, tokenizer.plain(texts), strict=True):
                    if len(documents) > 1:
                        ids.append(between)
                        documents[-1] = ids.rows
                    ids.append(tokens)
                    documents.append(ids.rows)
                    counts["characters"] += len(text)
                    counts["bytes"] += len(text.encode())
                    counts["words"] += len(text.split())
                count_decoded(len(texts))
        np.save(folder / "documents.npy", np.array(documents))
        return counts

    entry = build_once(context.home, [*facts, found.facts, separator], build)
    return TokenStream(entry.array("ids"), entry.array("documents"), **entry.meta, key=entry.key)


def strings(values: list[Any], column: str, dataset: DatasetConfig) -> list[str]:
    """The values if each is a text; otherwise an ``InputError``."""
    if not all(isinstance(value, str) for value in values):
        raise InputError(f"The column {column!r} of {dataset.path!r} has rows without a text.")
    return values
