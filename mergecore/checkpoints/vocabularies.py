"""Do base and models number their tokens alike? Adding up embeddings of different tokens ruins every merge silently."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergecore.checkpoints.checkpoint import Checkpoint
from mergecore.errors import InputError


def check_vocabularies(base: Checkpoint, models: Mapping[str, Checkpoint]) -> list[str]:
    """Compare the token numbers of every model's tokenizer with the base's, as far as both have one.

    Returns:
        One sentence for each model with tokens that the base lacks.

    Raises:
        InputError: a token has another number than in the base.
    """
    expected = token_numbers(base.folder)
    notes = []
    for name, model in models.items():
        found = token_numbers(model.folder)
        if not expected or not found or found == expected:
            continue
        other = next((token for token, number in found.items() if expected.get(token, number) != number), None)
        if other is not None:
            raise InputError(
                f"The tokenizers differ: {other!r} is token {found[other]} in the model {name!r}, "
                f"but {expected[other]} in the base.",
                "The rows of their embeddings mean different tokens and cannot be added up.",
            )
        added, lost = len(found.keys() - expected.keys()), len(expected.keys() - found.keys())
        notes.append(
            f"The tokenizer of the model {name!r} has {added} tokens that the base lacks, and lacks {lost} of "
            "the base's; the base's is used."
        )
    return notes


def token_numbers(folder: Path | None) -> dict[str, int]:
    """Token to number, from tokenizer.json, vocab.json or vocab.txt; empty when the folder has none of them.

    Raises:
        InputError: the file is not what its name says.
    """
    if folder is None:
        return {}
    for name, read in (("tokenizer.json", _fast), ("vocab.json", _plain), ("vocab.txt", _lines)):
        if (folder / name).is_file():
            try:
                return read((folder / name).read_text("utf-8"))
            except (ValueError, TypeError, KeyError, AttributeError, OSError):
                raise InputError(f"{str(folder / name)!r} is not a readable tokenizer file.") from None
    return {}


def _fast(text: str) -> dict[str, int]:
    content: dict[str, Any] = json.loads(text)
    vocabulary = content["model"].get("vocab", {})
    if isinstance(vocabulary, list):  # unigram: [token, score] in order
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    return {**vocabulary, **added}


def _plain(text: str) -> dict[str, int]:
    return {str(token): int(number) for token, number in json.loads(text).items()}


def _lines(text: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(text.splitlines())}
