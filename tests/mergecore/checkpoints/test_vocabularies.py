"""Tokenizers that number tokens differently are found before anything is merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergecore.checkpoints.checkpoint import Checkpoint
from mergecore.checkpoints.vocabularies import check_vocabularies, token_numbers
from mergecore.errors import InputError

TOKENS = ["<pad>", "the", "cat", "sat"]


def fast(tokens: list[str], added: tuple[str, ...] = ()) -> str:
    more = [{"id": len(tokens) + n, "content": token} for n, token in enumerate(added)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": more})


def checkpoint(folder: Path, name: str, content: str) -> Checkpoint:
    folder.mkdir()
    (folder / name).write_text(content)
    return Checkpoint(str(folder), {}, {}, folder=folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", fast(TOKENS)),
        ("tokenizer.json", json.dumps({"model": {"vocab": [[token, -1.0] for token in TOKENS]}})),
        ("vocab.json", json.dumps({token: number for number, token in enumerate(TOKENS)})),
        ("vocab.txt", "\n".join(TOKENS)),
    ],
    ids=["fast", "unigram", "json", "lines"],
)
def test_every_format_is_read(tmp_path: Path, name: str, content: str) -> None:
    found = token_numbers(checkpoint(tmp_path / "m", name, content).folder)
    assert found == {"<pad>": 0, "the": 1, "cat": 2, "sat": 3}


def test_equal_vocabularies_and_none_say_nothing(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "tokenizer.json", fast(TOKENS))
    same = checkpoint(tmp_path / "same", "vocab.txt", "\n".join(TOKENS))
    without = Checkpoint("state dict", {}, {})
    assert check_vocabularies(base, {"same": same, "without": without}) == []
    assert check_vocabularies(without, {"same": same}) == []


def test_added_tokens_are_noted(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "tokenizer.json", fast(TOKENS))
    more = checkpoint(tmp_path / "more", "tokenizer.json", fast(TOKENS, ("<|im_end|>",)))
    (note,) = check_vocabularies(base, {"chat": more})
    assert "'chat' has 1 tokens that the base lacks, and lacks 0" in note


def test_other_numbers_are_an_error(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "tokenizer.json", fast(TOKENS))
    other = checkpoint(tmp_path / "other", "tokenizer.json", fast([*TOKENS[:2], "sat", "cat"]))
    with pytest.raises(InputError, match=r"'sat' is token 2 in the model 'other', but 3 in the base"):
        check_vocabularies(base, {"other": other})


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 3}'])
def test_unreadable_files_are_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match="not a readable tokenizer file"):
        token_numbers(checkpoint(tmp_path / "m", "tokenizer.json", content).folder)
