"""Every evaluator keeps the contract; each agrees with an independent plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergecore.config import TaskConfig
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.evaluators import EVALUATORS
from mergecore.evaluators.base import Candidate, Context
from mergecore.evaluators.metrics import classification_metrics
from mergecore.preflight import check
from mergecore.study import prepare

CALLABLES = '''
import math

def norm(candidate, *, power=1.0):
    """A number from coefficients and weights."""
    return float(sum(candidate.coefficients) ** power) + 0.0 * float(next(iter(candidate.weights.values())).sum())

def several(candidate, **_):
    return {"accuracy": 0.25, "other": 2.0}

def sometimes(candidate):
    c = candidate.coefficients[0]
    if c == 0.25:
        raise ValueError("no good")
    return math.nan if c == 0.5 else 1.7 if c == 0.75 else 0.5

not_callable = 3
'''


@pytest.fixture
def callables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"callables_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(CALLABLES)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


NETWORKS = {
    "clip_zero_shot": "pico_clip",
    "lm_eval": "pico_harness",
    "perplexity": "pico_language_model",
    "sequence_classification": "pico_classifier",
}
"""Fixture with base, first, second and data of the evaluators that do not measure a `pico_vit`."""


@pytest.fixture
def pico(name: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """The checkpoints and the data that the evaluator ``name`` measures."""
    found: dict[str, str] = request.getfixturevalue(NETWORKS.get(name, "pico_vit"))
    return found


def task_for(evaluator: str, pico: dict[str, str], callables: str, **changes: Any) -> TaskConfig:
    """A valid task of each registered evaluator; a new evaluator adds its line here."""
    tasks: dict[str, dict[str, Any]] = {
        "clip_zero_shot": {
            "dataset": {"path": pico["data"], "split": "validation"},
            "args": {"class_names": ["cat", "dog", "newt"], "templates": ["a {}.", "{}!"]},
        },
        "image_classification": {"dataset": {"path": pico["data"], "split": "validation"}},
        "lm_eval": {
            "metric": "acc",
            "args": {
                "tasks": {
                    "task": "pico",
                    "dataset_path": "json",
                    "dataset_kwargs": {"data_files": {"test": pico["data"]}},
                    "test_split": "test",
                    "output_type": "multiple_choice",
                    "doc_to_text": "{{text}}",
                    "doc_to_choice": ["w1", "w2", "w3"],
                    "doc_to_target": "label",
                }
            },
        },
        "perplexity": {"dataset": {"path": pico["data"], "split": "validation"}, "metric": "perplexity"},
        "python": {"args": {"function": f"{callables}:norm", "power": 2.0}},
        "sequence_classification": {"dataset": {"path": pico["data"], "split": "validation"}},
    }
    return TaskConfig.model_validate({"name": "t", "evaluator": evaluator, **tasks[evaluator], **changes})


@pytest.mark.parametrize("name", list(EVALUATORS))
class TestContract:
    def test_deterministic_and_keyed_by_content(self, name, pico, callables, home) -> None:
        task = task_for(name, pico, callables)
        models = [{"name": model, "source": pico[model]} for model in ("first", "second")]
        study = prepare(parse_config({"base": pico["base"], "models": models, "tasks": [task.model_dump()]}), home)
        worker = CandidateEvaluator(study)
        first = worker.evaluate([0.3, 0.6], [0])[0]
        worker.evaluate([0.9, 0.1], [0])
        again = CandidateEvaluator(study).evaluate([0.3, 0.6], [0])[0]
        assert not first.reason
        assert first.metrics == again.metrics
        assert task.metric in first.metrics
        one, two = (study.measured[0].evaluator() for _ in range(2))
        assert one.key == two.key

    def test_measures_what_it_says(self, name, pico, callables, home) -> None:
        evaluator = EVALUATORS.get(name)
        task = task_for(name, pico, callables)
        made = evaluator(task, task.dataset, Context(home, base=pico["base"], base_folder=Path(pico["base"])))
        assert evaluator.metrics is None or task.metric in evaluator.metrics
        assert made.examples >= 0
        assert isinstance(evaluator.version, int)

    def test_its_time_is_known_from_few_batches(self, name, pico, callables, home) -> None:
        task = task_for(name, pico, callables)
        models = [{"name": model, "source": pico[model]} for model in ("first", "second")]
        found = check(parse_config({"base": pico["base"], "models": models, "tasks": [task.model_dump()]}), home)
        assert set(found.seconds) == ({"t"} if EVALUATORS.get(name).needs_network else set())


def test_image_classification_equals_a_plain_loop(pico_vit, pico_config, home) -> None:
    from transformers import ViTForImageClassification

    study = prepare(parse_config(pico_config), home)
    found = CandidateEvaluator(study).evaluate([0.4, 0.7], [0, 1])
    states = {
        name: ViTForImageClassification.from_pretrained(pico_vit[name]).state_dict()
        for name in ("base", "first", "second")
    }
    merged = {
        key: base + 0.4 * (states["first"][key] - base) + 0.7 * (states["second"][key] - base)
        for key, base in states["base"].items()
    }
    model = ViTForImageClassification.from_pretrained(pico_vit["base"]).eval()
    model.load_state_dict(merged)
    with np.load(pico_vit["data"]) as data:
        images, labels = data["x_validation"], data["y_validation"]
    correct, loss = 0, 0.0
    with torch.no_grad():
        for image, label in zip(images, labels, strict=True):
            logits = model(torch.from_numpy(image[None])).logits[0]
            correct += int(logits.argmax()) == label
            loss += float(-torch.log_softmax(logits, 0)[label])
    assert found[0].metrics["accuracy"] == correct / len(labels)
    assert found[1].metrics["cross_entropy"] == pytest.approx(loss / len(labels), rel=1e-5)


def test_bytes_and_floats_are_the_same_images(tmp_path: Path, home: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "b.npz", x_test=grey, y_test=np.zeros(6, dtype=int))
    np.savez(
        tmp_path / "f.npz", x_test=(grey[:, None] / np.float32(255)).astype(np.float32), y_test=np.zeros(6, dtype=int)
    )
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return torch.zeros(len(images), 2)

    for name, args in (("b", {"mean": [0.5] * 3, "std": [0.2] * 3}), ("b", {}), ("f", {})):
        task = TaskConfig.model_validate(
            {"name": "t", "dataset": {"path": str(tmp_path / f"{name}.npz")}, "args": args}
        )
        EVALUATORS.get("image_classification")(task, task.dataset, Context(home)).evaluate(
            Candidate(np.zeros(2), {}, lambda: Spy())
        )
    assert seen[0].shape == (6, 3, 8, 8)
    torch.testing.assert_close(seen[0], (seen[1].expand(-1, 3, -1, -1) - 0.5) / 0.2)
    torch.testing.assert_close(seen[1], seen[2])


def test_metrics_of_a_known_case() -> None:
    labels = np.array([0, 0, 0, 1])
    found = classification_metrics(np.array([1.0, 2.0, 3.0, 6.0]), np.array([0, 0, 1, 0]), labels)
    assert found["accuracy"][0] == 0.5
    assert found["accuracy"][1] == pytest.approx(0.25)
    assert found["balanced_accuracy"][0] == pytest.approx((2 / 3 + 0) / 2)
    assert found["cross_entropy"][0] == 3.0


@pytest.mark.parametrize(
    ("c", "reason"), [(0.25, "ValueError: no good"), (0.5, "accuracy is nan"), (0.75, "outside its range [0.0, 1.0]")]
)
def test_a_bad_candidate_has_a_reason_and_the_next_one_works(pico_config, callables, home, c, reason) -> None:
    tasks = [
        {"name": "t", "evaluator": "python", "args": {"function": f"{callables}:sometimes"}},
        pico_config["tasks"][0],
    ]
    worker = CandidateEvaluator(prepare(parse_config({**pico_config, "tasks": tasks[:1]}), home))
    assert reason in worker.evaluate([c, 0.0], [0])[0].reason
    assert worker.evaluate([0.1, 0.0], [0])[0].metrics == {"accuracy": 0.5}


def test_several_metrics_from_one_call(pico_config, callables, home) -> None:
    task = {"name": "t", "evaluator": "python", "args": {"function": f"{callables}:several"}}
    worker = CandidateEvaluator(prepare(parse_config({**pico_config, "tasks": [task]}), home))
    assert worker.evaluate([0.1, 0.2], [0])[0].metrics == {"accuracy": 0.25, "other": 2.0}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "needs args.function"),
        ({"function": "nothing"}, "names no function"),
        ({"function": "no_such_module:f"}, "cannot import"),
        ({"function": "MODULE:missing"}, "cannot import"),
        ({"function": "MODULE:not_callable"}, "is not callable"),
        ({"function": "MODULE:norm", "powr": 2}, "cannot be called with these args"),
    ],
)
def test_faults_of_the_python_evaluator(callables, home, args, message) -> None:
    args = {key: value.replace("MODULE", callables) if isinstance(value, str) else value for key, value in args.items()}
    task = TaskConfig.model_validate({"name": "t", "evaluator": "python", "args": args})
    with pytest.raises(InputError, match=message):
        EVALUATORS.get("python")(task, None, Context(home))


def test_key_follows_the_source_of_the_function(tmp_path, callables, home) -> None:
    task = TaskConfig.model_validate({"name": "t", "evaluator": "python", "args": {"function": f"{callables}:norm"}})
    before = EVALUATORS.get("python")(task, None, Context(home)).key
    file = tmp_path / f"{callables}.py"
    file.write_text(file.read_text() + "\n# changed\n")
    assert EVALUATORS.get("python")(task, None, Context(home)).key != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": None}, "names no dataset"),
        ({"args": {"batchsize": 3}}, "args.batchsize"),
        ({"args": {"mean": [0.5]}}, "differ in length"),
    ],
)
def test_faults_of_image_classification(pico_vit, callables, home, changes, message) -> None:
    task = task_for("image_classification", pico_vit, callables, **changes)
    with pytest.raises(InputError, match=message):
        EVALUATORS.get("image_classification")(task, task.dataset, Context(home))
