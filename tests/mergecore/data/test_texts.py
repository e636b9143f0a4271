"""Texts in the cache, padded on the fly, are what the checkpoint's tokenizer makes of them."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from mergecore.data import texts as module
from mergecore.data.cache import decoded
from mergecore.data.texts import load_texts, load_token_stream
from mergecore.errors import InputError
from mergecore.evaluators.base import Context
from tests.mergecore.data.conftest import dataset, save_word_tokenizer

WORDS = "the cat dog sat ran on mat far away é"
FIRST = ["the cat sat on the mat", "the dog", "the dog ran far far away", "cat", "unknown dog é", "on on on"]
SECOND = ["the dog sat", "far away the cat sat on the mat", "cat", "the mat", "dog", "the dog ran"]
LABELS = [0, 1, 0, 1, 1, 0]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)


@pytest.fixture
def singles(tmp_path: Path) -> Path:
    Dataset.from_dict({"sentence": FIRST, "label": LABELS}).to_parquet(tmp_path / "test.parquet")
    return tmp_path / "test.parquet"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = {"sentence1": FIRST, "sentence2": SECOND, "label": LABELS}
    Dataset.from_dict(rows).to_parquet(tmp_path / "test.parquet")
    return tmp_path / "test.parquet"


def base(context: Context, *, kind: str = "bert", config: dict[str, Any] | None = None, **keys: Any) -> Any:
    """Puts a tokenizer, and a config if there is one, into the base's folder; returns the tokenizer."""
    folder = Path(str(context.base_folder))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return save_word_tokenizer(folder, WORDS, kind=kind, **keys)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("columns", ["singles", "pairs"])
@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4, 5], [3], [5, 0]])
def test_batches_are_what_the_tokenizer_makes(
    columns: str, kind: str, side: str, indices: Sequence[int], context: Context, request: pytest.FixtureRequest
) -> None:
    twin = base(context, kind=kind, padding_side=side)
    twin.pad_token = twin.pad_token or twin.eos_token
    found = load_texts(dataset(request.getfixturevalue(columns)), context, max_length=9)
    given = [[column[i] for i in indices] for column in ((FIRST,) if columns == "singles" else (FIRST, SECOND))]
    expected = twin(*given, truncation=True, max_length=9, padding=True, return_tensors="pt")
    batch = found.batch(indices)
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name
    assert found.y.tolist() == LABELS
    assert found.lengths[indices].tolist() == expected["attention_mask"].sum(dim=1).tolist()


def test_tokenised_once(singles: Path, context: Context) -> None:
    base(context)
    before = decoded()
    first, second = (load_texts(dataset(singles), context) for _ in range(2))
    assert decoded() == before + len(FIRST)
    assert first.key == second.key
    assert isinstance(second.ids, np.memmap)
    stream = load_token_stream(dataset(singles), context)
    assert load_token_stream(dataset(singles), context).key == stream.key
    assert decoded() == before + 2 * len(FIRST)


def test_a_limit_is_drawn_by_class(singles: Path, context: Context) -> None:
    twin = base(context)
    found = load_texts(dataset(singles, limit=2, seed=3), context)
    assert sorted(found.y) == [0, 1]
    for index, label in enumerate(found.y):
        tokens = found.batch([index])["input_ids"][0].tolist()
        assert tokens in [twin(text)["input_ids"] for text, own in zip(FIRST, LABELS, strict=True) if own == label]


@pytest.mark.parametrize(
    ("keys", "config", "wanted", "longest"),
    [
        ({}, None, None, 8),  # nothing limits: the longest text and two special tokens
        ({}, None, 5, 5),
        ({"model_max_length": 6}, None, None, 6),
        ({"model_max_length": 6}, None, 7, 6),
        ({"model_max_length": 6}, {"model_type": "bert", "max_position_embeddings": 4}, None, 4),
        ({}, {"model_type": "gpt2", "n_positions": 4}, 5, 4),
        ({}, {"model_type": "clip", "text_config": {"max_position_embeddings": 5}}, None, 5),
        ({"pad_token": "[UNK]"}, {"model_type": "xlm-roberta", "max_position_embeddings": 7}, None, 5),
    ],
)
def test_texts_are_cut_at_what_the_network_can_read(
    keys: dict[str, Any],
    config: dict[str, Any] | None,
    wanted: int | None,
    longest: int,
    singles: Path,
    context: Context,
) -> None:
    base(context, config=config, **keys)
    assert load_texts(dataset(singles), context, max_length=wanted).lengths.max() == longest


def test_an_xlm_roberta_can_read_what_is_left(singles: Path, context: Context) -> None:
    """Its positions begin after the padding token's number: one more token would be out of range."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = XLMRobertaConfig(vocab_size=20, max_position_embeddings=7, pad_token_id=1, **sizes)
    base(context, kind="gpt2", pad_token="[UNK]", config=config.to_dict())
    batch = load_texts(dataset(singles), context).batch(range(6))
    assert batch["input_ids"].shape[1] == 5
    XLMRobertaModel(config)(**batch)


def test_padding_falls_back(singles: Path, context: Context) -> None:
    base(context, kind="gpt2")
    assert load_texts(dataset(singles), context).pad_id == 5  # <end>
    base(context, kind="gpt2", config={"pad_token_id": 7})
    assert load_texts(dataset(singles), context).pad_id == 7


def test_what_is_read_follows_the_tokenizer_and_the_columns(pairs: Path, context: Context) -> None:
    base(context)
    keys = [load_texts(dataset(pairs), context).key]
    keys.append(load_texts(dataset(pairs, columns={"text": "sentence2"}), context).key)
    keys.append(load_texts(dataset(pairs), context, max_length=5).key)
    save_word_tokenizer(Path(str(context.base_folder)), WORDS + " unknown")
    keys.append(load_texts(dataset(pairs), context).key)
    assert len(set(keys)) == 4


def test_an_adapters_folder_without_tokenizer_leaves_it_to_the_base(
    singles: Path, tmp_path: Path, context: Context
) -> None:
    base(context, config={"max_position_embeddings": 4})
    save_word_tokenizer(tmp_path / "head", WORDS, kind="gpt2")
    with_own = replace(context, head_folder=tmp_path / "head")
    assert load_texts(dataset(singles), with_own).types is None
    assert load_texts(dataset(singles), with_own).lengths.max() == 4
    assert load_texts(dataset(singles), replace(context, head_folder=tmp_path)).types is not None


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_a_stream_is_all_documents(kind: str, singles: Path, context: Context) -> None:
    twin = base(context, kind=kind)
    stream = load_token_stream(dataset(singles), context)
    expected = [4] if kind == "llama" else []
    begins = []
    for index, text in enumerate(FIRST):
        expected += [5] if index and kind != "bert" else []
        begins.append(len(expected))
        expected += twin(text, add_special_tokens=False)["input_ids"]
    assert stream.ids.tolist() == expected
    assert stream.documents.tolist() == [*begins, len(expected)]
    assert stream.characters == len("".join(FIRST))
    assert stream.bytes == stream.characters + 1  # the one é
    assert stream.words == len(" ".join(FIRST).split())


def test_a_separator_of_ones_own_and_a_draw_in_order(singles: Path, context: Context) -> None:
    twin = base(context, kind="gpt2")
    plain = load_token_stream(dataset(singles), context, separator="")
    assert plain.ids.tolist() == twin(" ".join(FIRST))["input_ids"]
    marked = load_token_stream(dataset(singles), context, separator=" mat mat ")
    assert marked.ids.tolist() == twin(" mat mat ".join(FIRST))["input_ids"]
    some = load_token_stream(dataset(singles, limit=3), context, separator="")
    every = iter(twin(text)["input_ids"] for text in FIRST)
    drawn = [some.ids[start:stop].tolist() for start, stop in itertools.pairwise(some.documents)]
    assert len(drawn) == 3
    assert all(document in every for document in drawn)  # in their order: `in` moves the iterator on


def test_a_stream_needs_no_labels(tmp_path: Path, context: Context) -> None:
    base(context, kind="gpt2")
    (tmp_path / "test.jsonl").write_text('{"text": "the cat"}\n{"text": ""}\n{"text": "dog"}')
    stream = load_token_stream(dataset(tmp_path / "test.jsonl"), context)
    assert stream.ids.tolist() == [6, 7, 5, 5, 8]
    assert stream.documents.tolist() == [0, 3, 4, 5]


def test_faults_are_named(singles: Path, tmp_path: Path, context: Context) -> None:
    with pytest.raises(InputError, match="checkpoint 'base' has no tokenizer files"):
        load_texts(dataset(singles), context)
    folder = Path(str(context.base_folder))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer of .* cannot be loaded"):
        load_texts(dataset(singles), context)
    base(context)
    Dataset.from_dict({"text": ["a", None], "label": [0, 1]}).to_parquet(tmp_path / "none.test.parquet")
    with pytest.raises(InputError, match="has rows without a text"):
        load_texts(dataset(tmp_path / "none.test.parquet"), context)
    np.savez(tmp_path / "d.npz", x_test=np.ones((1, 1)), y_test=np.zeros(1, dtype=int))
    with pytest.raises(InputError, match="holds arrays, not texts"):
        load_texts(dataset(tmp_path / "d.npz"), context)


@pytest.mark.data
@pytest.mark.parametrize(("name", "classes"), [("cola", 2), ("rte", 2), ("banking77", 77)])
def test_real_sets(name: str, classes: int, real_data: Path, context: Context) -> None:
    twin = base(context)
    found = load_texts(dataset(real_data / "text" / name, limit=200), context, max_length=64)
    assert found.class_names is not None
    assert len(found.class_names) == classes
    with gzip.open(real_data / "text" / name / f"{name}.jsonl.gz", "rt") as handle:
        rows = [row for row in map(json.loads, handle) if row["split"] == "test"]
    fields = ("text_a", "text_b") if "text_a" in rows[0] else ("text",)
    known = {
        (tuple(twin(*(row[f] for f in fields), truncation=True, max_length=64)["input_ids"]), row["label"])
        for row in rows
    }
    assert len(found) == 200
    for index, label in enumerate(found.y):
        assert (tuple(found.ids[found.offsets[index] : found.offsets[index + 1]].tolist()), label) in known
