"""A checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergecore.errors import InputError, first_line
from mergecore.files import file_digest, read_json_mapping

if TYPE_CHECKING:
    from mergecore.evaluators.base import Context

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
"""What configs call the number of positions."""

NUMBERED_AFTER_PADDING = ("roberta", "camembert", "longformer", "mpnet", "data2vec-text", "xmod", "ibert", "luke")
"""Model types whose positions are counted from the padding token's number on, so that many fewer are left."""

UNLIMITED = 1_000_000
"""transformers says "no limit" by a huge number."""


class Tokenizer:
    """A tokenizer of transformers, with what the network's config adds to it.

    Args:
        tokenizer: the library's object.
        config: content of the checkpoint's config.json; may be empty.
    """

    def __init__(self, tokenizer: Any, config: Mapping[str, Any]) -> None:
        self._tokenizer, self._config = tokenizer, config

    @property
    def has_types(self) -> bool:
        """Whether it tells the texts of a pair apart."""
        return "token_type_ids" in self._tokenizer.model_input_names

    @property
    def padding_side(self) -> str:
        """ "left" or "right"."""
        return str(self._tokenizer.padding_side)

    @property
    def pad_id(self) -> int:
        """Its padding token; else the config's, else the one for the end of a text (GPT-2 has no other), else 0."""
        known = (self._tokenizer.pad_token_id, self._config.get("pad_token_id"), self._tokenizer.eos_token_id)
        return int(next((token for token in known if token is not None), 0))

    @cached_property
    def start(self) -> np.ndarray:
        """[0 or 1] the token that it sets before a text, if it is the one for the start of a text."""
        begins = self._tokenizer("a")["input_ids"][:1]
        return np.array([token for token in begins if token == self._tokenizer.bos_token_id], dtype=np.int32)

    def longest(self, wanted: int | None) -> int | None:
        """Tokens at which a text is cut: the least of what is wanted, and what tokenizer and network can take."""
        text_config = self._config.get("text_config")
        stated = {**(text_config if isinstance(text_config, dict) else {}), **self._config}
        limits = [wanted, self._tokenizer.model_max_length, *(stated.get(name) for name in POSITIONS)]
        if any(name in str(stated.get("model_type")) for name in NUMBERED_AFTER_PADDING):
            limits += [stated[name] - self.pad_id - 1 for name in POSITIONS if name in stated]
        found = [int(limit) for limit in limits if limit is not None and 0 < limit < UNLIMITED]
        return min(found, default=None)

    def encode(self, columns: Sequence[list[str]], longest: int | None) -> Mapping[str, list[list[int]]]:
        """Tokens of texts, or of pairs of texts, as the network takes them, without padding."""
        found: Mapping[str, list[list[int]]] = self._tokenizer(
            *columns, truncation=longest is not None, max_length=longest, padding=False, verbose=False
        )
        return found

    def plain(self, texts: list[str]) -> list[np.ndarray]:
        """Tokens of the texts alone, nothing set before or after them, nothing cut."""
        found = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [np.asarray(tokens, dtype=np.int32) for tokens in found]

    def separator(self, text: str | None) -> np.ndarray:
        """Tokens between two documents: of ``text``, or for None the one for the end of a text, if there is one."""
        if text is not None:
            return self.plain([text])[0]
        end = self._tokenizer.eos_token_id
        return np.array([] if end is None else [end], dtype=np.int32)


@dataclass(frozen=True)
class FoundTokenizer:
    """A tokenizer that has been found, but not loaded.

    Attributes:
        folder: where its files are.
        facts: what decides its output, as plain JSON, library version included.
        load: imports the library and returns it.
    """

    folder: Path
    facts: Any
    load: Callable[[], Tokenizer]


def find_tokenizer(context: Context) -> FoundTokenizer:
    """The tokenizer of the network that a task is measured on: of the head's folder, else of the base's.

    Raises:
        InputError: there is none.
    """
    folders = [folder for folder in (context.head_folder, context.base_folder) if folder is not None]
    config = next(
        filter(None, (read_json_mapping(folder / "config.json") for folder in folders)), {}
    )  # an adapter's folder has none
    for folder in folders:
        files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        if files:
            stated = {key: config.get(key) for key in ("model_type", "pad_token_id", "text_config", *POSITIONS)}
            digests = [[file.name, file_digest(file)] for file in files]
            libraries = [version(library) for library in ("transformers", "tokenizers")]
            return FoundTokenizer(folder, [digests, stated, libraries], partial(_load, folder, config))
    raise InputError(
        f"The checkpoint {context.base!r} has no tokenizer files, so no text can be read for it.",
        "Put tokenizer.json and tokenizer_config.json into its folder.",
    )


def _load(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    from transformers import AutoTokenizer

    from mergecore.architectures.hub_transformers import quiet_transformers

    try:
        with quiet_transformers():
            return Tokenizer(AutoTokenizer.from_pretrained(str(folder), local_files_only=True), config)
    except Exception as error:  # it raises errors of every kind, also its dependencies'
        reason = first_line(error)
        raise InputError(f"The tokenizer of {str(folder)!r} cannot be loaded: {reason}.") from None
