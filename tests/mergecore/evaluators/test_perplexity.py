"""Every token of a stream is scored once, as a plain loop over single tokens does it."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.suites.tiny_llama import encode, read_tokens, write_llama
from mergecore.config import TaskConfig
from mergecore.errors import InputError
from mergecore.evaluators import perplexity
from mergecore.evaluators.base import Candidate, Context, Measurement
from mergecore.evaluators.perplexity import Perplexity
from tests.mergecore.evaluators.pico_texts import network, texts, write_rows, write_tokenizer

END = 2
"""The token between documents."""


def saved(folder: Path, kind: str, **changes: Any) -> torch.nn.Module:
    module = network(kind, **changes)
    module.save_pretrained(folder)
    write_tokenizer(folder)
    return module


def documents(file: Path, count: int = 20) -> tuple[str, list[int]]:
    """A .jsonl file of random documents, and their stream of tokens."""
    rows = texts(count)
    ids: list[int] = []
    for text in rows:
        ids += [END] * bool(ids) + [4 + int(word[1:]) for word in text.split()]
    return write_rows(file, [{"text": text, "split": "validation"} for text in rows]), ids


def evaluator(folder: Path, home: Path, data: str, *, split: str = "validation", **args: Any) -> Perplexity:
    task = TaskConfig.model_validate(
        {
            "name": "t",
            "evaluator": "perplexity",
            "metric": "perplexity",
            "dataset": {"path": data, "split": split},
            "args": args,
        }
    )
    return Perplexity(task, task.dataset, Context(home, base="the base", base_folder=folder))


def measure(made: Perplexity, module: torch.nn.Module, precision: str = "float32") -> Measurement:
    return made.evaluate(Candidate(np.zeros(2), {}, lambda: module, precision=precision))


def nats(module: torch.nn.Module, context: list[int], token: int) -> float:
    with torch.no_grad():
        return -float(torch.log_softmax(module(torch.tensor([context])).logits[0, -1].double(), 0)[token])


def token_by_token(module: torch.nn.Module, ids: list[int], window: int, stride: int) -> list[float]:
    """Each token from its context alone: the first window that reaches the token before it."""
    found = []
    for place in range(1, len(ids)):
        begin = next(begin for begin in range(0, len(ids), stride) if begin + window >= place)
        found.append(nats(module, ids[begin:place], ids[place]))
    return found


def guide_of_transformers(module: torch.nn.Module, ids: list[int], max_length: int, stride: int) -> float:
    """The loop at https://huggingface.co/docs/transformers/perplexity, weighted by tokens; mean nats."""
    total, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        inputs = torch.tensor([ids[begin:end]])
        targets = inputs.clone()
        targets[:, : -(end - before)] = -100
        scored = int((targets[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(module(inputs, labels=targets).loss) * scored
        count, before = count + scored, end
        if end == len(ids):
            break
    return total / count


@pytest.mark.parametrize("kind", ["gpt2-lm", "llama-lm"])
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (16, 15), (7, 1), (32, 32)])
def test_equals_plain_loops(tmp_path: Path, home: Path, kind: str, window: int, stride: int) -> None:
    module = saved(tmp_path / "m", kind)
    data, ids = documents(tmp_path / "d.jsonl")
    found = measure(evaluator(tmp_path / "m", home, data, window=window, stride=stride), module).metrics
    expected = token_by_token(module, ids, window, stride)
    assert len(expected) == len(ids) - 1
    loss = float(np.mean(expected))
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
    text_bytes = sum(len(json.loads(line)["text"].encode()) for line in Path(data).read_text().splitlines())
    assert found["bits_per_byte"] == pytest.approx(sum(expected) / text_bytes / np.log(2), rel=1e-5)
    if stride < window and window < 32:
        assert found["loss"] == pytest.approx(guide_of_transformers(module, ids, window + 1, stride), rel=1e-5)


@pytest.mark.parametrize("tokens", [2, 3, 16, 17, 18, 33, 40])
def test_ends_of_streams(tmp_path: Path, home: Path, tokens: int) -> None:
    module = saved(tmp_path / "m", "gpt2-lm")
    data, ids = documents(tmp_path / "d.jsonl")
    for stride in (16, 6):
        made = evaluator(tmp_path / "m", home, data, window=16, stride=stride, max_tokens=tokens, batch_size=2)
        expected = np.mean(token_by_token(module, ids[:tokens], 16, stride))
        assert measure(made, module).metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_defaults(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "gpt2-lm")
    data, ids = documents(tmp_path / "d.jsonl")
    made = evaluator(tmp_path / "m", home, data)
    assert made.examples == -(-(len(ids) - 1) // 32)  # windows as long as the network can read
    assert made.key == evaluator(tmp_path / "m", home, data, window=32, stride=32).key
    found = measure(made, module)
    assert found.examples == made.examples
    assert found.metrics["loss"] == pytest.approx(np.mean(token_by_token(module, ids, 32, 32)), rel=1e-5)


def test_documents_are_what_a_limit_counts(tmp_path: Path, home: Path) -> None:
    saved(tmp_path / "m", "gpt2-lm")
    made = evaluator(tmp_path / "m", home, documents(tmp_path / "d.jsonl", count=17)[0], window=4)
    assert made.rows == 17 < made.examples


def test_errors_are_those_of_a_ratio_over_windows(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "gpt2-lm")
    data, ids = documents(tmp_path / "d.jsonl")
    found = measure(evaluator(tmp_path / "m", home, data, window=16), module)
    each = token_by_token(module, ids, 16, 16)
    windows = [each[begin : begin + 16] for begin in range(0, len(each), 16)]
    loss = np.mean(each)
    residuals = [sum(window) - loss * len(window) for window in windows]
    count = len(windows)
    expected = np.sqrt(count / (count - 1) * np.sum(np.square(residuals))) / len(each)
    assert found.noise["loss"] == pytest.approx(expected, rel=1e-4)
    assert found.noise["perplexity"] == pytest.approx(np.exp(loss) * expected, rel=1e-4)
    assert not measure(evaluator(tmp_path / "m", home, data, max_tokens=9), module).noise  # one window


def test_neither_batches_nor_pieces_change_more_than_rounding(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = saved(tmp_path / "m", "llama-lm")
    data, _ = documents(tmp_path / "d.jsonl")
    made = [evaluator(tmp_path / "m", home, data, window=12, stride=8, batch_size=size) for size in (1, 5, "auto")]
    assert len({one.key for one in made}) == 1
    first, *others = (measure(one, module).metrics for one in made)
    monkeypatch.setattr(perplexity, "FLOAT32_LOGITS", 130)  # three rows at a time
    for other in [*others, measure(made[0], module).metrics]:
        assert other == pytest.approx(first, rel=1e-6)


def test_autocast(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "llama-lm")
    data, _ = documents(tmp_path / "d.jsonl")
    made = evaluator(tmp_path / "m", home, data)
    exact, rounded = (measure(made, module, precision).metrics["loss"] for precision in ("float32", "bfloat16"))
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


def test_separator_and_windows_are_content(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "gpt2-lm")
    data, ids = documents(tmp_path / "d.jsonl")
    made = [
        evaluator(tmp_path / "m", home, data, **args)
        for args in ({}, {"separator": "w3"}, {"window": 8}, {"stride": 8}, {"max_tokens": 50})
    ]
    assert len({one.key for one in made}) == len(made)
    other = [7 if token == END else token for token in ids]
    assert measure(made[1], module).metrics["loss"] == pytest.approx(
        np.mean(token_by_token(module, other, 32, 32)), 1e-5
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"windw": 3}, "Did you mean 'window'"),
        ({"window": 33}, "args.window is 33, but the network reads 32 at most"),
        ({"window": 8, "stride": 9}, "args.stride 9 is longer than the window of 8 tokens"),
        ({"max_tokens": 1}, "args.max_tokens"),
    ],
)
def test_faults(tmp_path: Path, home: Path, args: dict[str, Any], message: str) -> None:
    saved(tmp_path / "m", "gpt2-lm")
    data, _ = documents(tmp_path / "d.jsonl")
    with pytest.raises(InputError, match=message):
        evaluator(tmp_path / "m", home, data, **args)


def test_streams_and_networks_that_do_not_fit(tmp_path: Path, home: Path) -> None:
    saved(tmp_path / "small", "gpt2-lm", vocab_size=20)
    data, ids = documents(tmp_path / "d.jsonl")
    with pytest.raises(InputError, match=f"makes the token {max(ids)}, but its network has embeddings for 20"):
        evaluator(tmp_path / "small", home, data).check(None)
    saved(tmp_path / "bert", "bert")
    with pytest.raises(InputError, match="'the base' is a BertForSequenceClassification"):
        evaluator(tmp_path / "bert", home, data).check(None)
    empty = write_rows(tmp_path / "empty.jsonl", [{"text": "", "split": "validation"}] * 3)
    with pytest.raises(InputError, match="holds no text"):
        evaluator(tmp_path / "small", home, empty)


@pytest.mark.data
def test_a_real_llama_on_real_texts(tmp_path: Path, home: Path, real_data: Path) -> None:
    source = real_data / "weights" / "aidreams260K"
    module = write_llama(source, tmp_path / "m")
    tokens = read_tokens(source / "tok512.bin")
    losses = {}
    for name in ("lm_en_captions", "lm_de_captions"):
        with gzip.open(real_data / "lm" / name / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line)["text"] for line in itertools.islice(lines, 30)]
        data = write_rows(tmp_path / f"{name}.jsonl", [{"text": text, "split": "validation"} for text in rows])
        made = evaluator(tmp_path / "m", home, data, stride=50)
        assert made.examples > 10
        ids: list[int] = []
        for text in rows:
            ids += [END] * bool(ids) + encode(tokens, text)
        losses[name] = measure(made, module).metrics["loss"]
        assert losses[name] == pytest.approx(guide_of_transformers(module, ids, 129, 50), rel=1e-5)
    assert losses["lm_en_captions"] < losses["lm_de_captions"] - 1
