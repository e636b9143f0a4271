"""Image classifiers of three libraries, as merged and adapted after the merge, against plain loops."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from mergecore.architectures.hub_transformers import quiet_transformers
from mergecore.config import TaskConfig
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.evaluators.base import Candidate, Context
from mergecore.evaluators.image_classification import ImageClassification
from mergecore.study import prepare
from tests.mergecore.evaluators.pico_resnet import candidate, resnet

NORM = {"examples": 48, "batch_size": 16, "seed": 3}
HEAD = {"examples": 64, "ridge": 0.5}


@pytest.fixture
def images(tmp_path: Path) -> str:
    """An .npz file of noise with a hint of its class in it, sorted by class as image folders are."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 64), ("validation", 41)):
        labels = np.sort(generator.integers(0, 3, count))
        noise = generator.normal(size=(count, 3, 32, 32))
        arrays[f"x_{split}"] = (noise + labels[:, None, None, None]).astype(np.float32)
        arrays[f"y_{split}"] = labels
    np.savez(tmp_path / "images.npz", **arrays)
    return str(tmp_path / "images.npz")


def evaluator(images: str, home: Path, **args: Any) -> ImageClassification:
    task = TaskConfig.model_validate({"name": "t", "dataset": {"path": images, "split": "validation"}, "args": args})
    return ImageClassification(task, task.dataset, Context(home))


def split_of(images: str, split: str) -> tuple[torch.Tensor, np.ndarray]:
    with np.load(images) as data:
        return torch.from_numpy(data[f"x_{split}"]), data[f"y_{split}"]


def plain_loop(module: torch.nn.Module, images: str) -> tuple[float, float]:
    """Accuracy and cross-entropy, one image at a time."""
    x, y = split_of(images, "validation")
    correct, loss = 0, 0.0
    with torch.no_grad():
        for image, label in zip(x, y, strict=True):
            output = module(image[None])
            logits = (output.logits if hasattr(output, "logits") else output)[0]
            correct += int(logits.argmax()) == label
            loss += float(-torch.log_softmax(logits, 0)[label])
    return correct / len(y), loss / len(y)


@pytest.mark.parametrize("batch_size", ["auto", 7])
@pytest.mark.parametrize("library", ["transformers", "timm", "torchvision"])
def test_equals_a_plain_loop(images: str, home: Path, library: str, batch_size: object) -> None:
    module = resnet(library)
    found = evaluator(images, home, batch_size=batch_size).evaluate(candidate(module))
    accuracy, loss = plain_loop(module, images)
    assert found.metrics["accuracy"] == accuracy
    assert found.metrics["cross_entropy"] == pytest.approx(loss, rel=1e-5)
    assert found.examples == 41
    assert found.noise.keys() == found.metrics.keys()
    assert all(error > 0 for error in found.noise.values())


@pytest.mark.parametrize("library", ["transformers", "timm", "torchvision"])
def test_estimated_statistics_are_those_of_update_bn(images: str, home: Path, library: str) -> None:
    """All training images are drawn, so that the order alone is the evaluator's own."""
    module = resnet(library)
    expected = copy.deepcopy(module)
    x, _ = split_of(images, "train")
    order = np.random.default_rng(3).permutation(64)
    torch.optim.swa_utils.update_bn([x[np.sort(order[start : start + 20])] for start in (0, 20, 40)], expected)
    expected.eval()
    made = evaluator(images, home, batch_norm={"examples": 64, "batch_size": 20, "seed": 3})
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = made.evaluate(candidate(module))
    accuracy, loss = plain_loop(expected, images)
    assert found.metrics["accuracy"] == accuracy
    assert found.metrics["cross_entropy"] == pytest.approx(loss, rel=1e-5)
    assert found.metrics["cross_entropy"] != pytest.approx(plain_loop(module, images)[1], rel=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("library", ["transformers", "timm", "torchvision"])
def test_refitted_head_is_ridge_regression_on_the_features(images: str, home: Path, library: str) -> None:
    module = resnet(library)
    head = {"transformers": "classifier.1"}.get(library, "fc")

    def features(x: torch.Tensor) -> np.ndarray:
        without_head = copy.deepcopy(module)
        without_head.set_submodule(head, torch.nn.Identity())
        with torch.no_grad():
            output = without_head(x)
        return (output.logits if hasattr(output, "logits") else output).numpy().astype(np.float64)

    x_train, y_train = split_of(images, "train")
    x, y = split_of(images, "validation")
    model = Ridge(alpha=0.5).fit(features(x_train), np.eye(3)[y_train])
    logits = torch.from_numpy(model.predict(features(x)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = evaluator(images, home, refit_head={"ridge": 0.5}).evaluate(candidate(module))
    assert found.metrics["accuracy"] == float((logits.argmax(1).numpy() == y).mean())
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
    assert found.metrics["cross_entropy"] == pytest.approx(float(expected), rel=1e-5)
    assert found.metrics["accuracy"] > plain_loop(module, images)[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not module.get_submodule(head)._forward_pre_hooks


def test_a_head_for_more_classes_than_the_network_has(images: str, home: Path, tmp_path: Path) -> None:
    with np.load(images) as data:
        shifted = {name: values + 4 if name.startswith("y") else values for name, values in data.items()}
    np.savez(tmp_path / "shifted.npz", **shifted)
    module = resnet("timm")
    kept = evaluator(images, home, refit_head=HEAD).evaluate(candidate(module))
    found = evaluator(str(tmp_path / "shifted.npz"), home, refit_head=HEAD).evaluate(candidate(module))
    assert found.metrics["accuracy"] == kept.metrics["accuracy"]
    with pytest.raises(InputError, match="has the label 6, but the network tells 3 classes apart"):
        evaluator(str(tmp_path / "shifted.npz"), home).evaluate(candidate(module))


@pytest.mark.parametrize("method", ["closed_form", "logistic"])
def test_adapted_tensors_written_into_the_network_give_the_same_metrics(images: str, home: Path, method: str) -> None:
    module = resnet("transformers")
    made = evaluator(images, home, batch_norm=NORM, refit_head={**HEAD, "method": method})
    found = made.evaluate(candidate(module))
    adapted = made.adapted_tensors(candidate(module))
    assert {"classifier.1.weight", "classifier.1.bias"} < set(adapted)
    written = copy.deepcopy(module)
    assert not written.load_state_dict(adapted, strict=False).unexpected_keys
    accuracy, loss = plain_loop(written, images)
    assert found.metrics["accuracy"] == accuracy
    assert found.metrics["cross_entropy"] == pytest.approx(loss, rel=1e-5)
    assert evaluator(images, home).adapted_tensors(candidate(module)) == {}


def test_adapted_tensors_go_by_the_names_of_the_file(images: str, home: Path) -> None:
    module = resnet("timm")
    weights = {f"model.{name}": tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    made = evaluator(images, home, batch_norm=NORM, refit_head=HEAD)
    adapted = made.adapted_tensors(Candidate(np.zeros(2), weights, lambda: module))
    assert set(adapted) <= set(weights)
    assert {"model.bn1.running_var", "model.fc.bias"} < set(adapted)


def test_a_merged_study_is_adapted_candidate_by_candidate(images: str, home: Path, tmp_path: Path) -> None:
    """The next candidate, and another task on the same candidate, see nothing of an adaptation."""
    sources = []
    for seed in range(3):
        module = resnet("transformers")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.dtype.is_floating_point:
                    tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator).abs())
        sources.append(str(tmp_path / str(seed)))
        with quiet_transformers():
            module.save_pretrained(sources[-1])
    dataset = {"path": images, "split": "validation"}
    config = {
        "base": sources[0],
        "models": [{"name": f"m{n}", "source": source} for n, source in enumerate(sources[1:])],
        "tasks": [
            {"name": "plain", "dataset": dataset, "metric": "cross_entropy"},
            {"name": "adapted", "dataset": dataset, "args": {"batch_norm": NORM, "refit_head": HEAD}},
        ],
        "merge": {"heads": "merge"},
    }
    study = prepare(parse_config(config), home)
    worker = CandidateEvaluator(study)
    plain, adapted = worker.evaluate([0.3, 0.6], [0, 1])
    assert not plain.reason
    assert not adapted.reason
    assert adapted.metrics != plain.metrics
    worker.evaluate([0.9, 0.1], [1])
    assert [outcome.metrics for outcome in worker.evaluate([0.3, 0.6], [1, 0])] == [adapted.metrics, plain.metrics]
    alone = CandidateEvaluator(study)
    assert alone.evaluate([0.3, 0.6], [1])[0].metrics == adapted.metrics
    assert study.measured[0].key != study.measured[1].key


def test_key_follows_what_changes_results(images: str, home: Path) -> None:
    keys = [
        evaluator(images, home, **args).key
        for args in (
            {},
            {"batch_norm": NORM},
            {"batch_norm": {**NORM, "batch_size": 8}},
            {"batch_norm": {**NORM, "seed": 4}},
            {"batch_norm": {**NORM, "examples": 40}},
            {"batch_norm": {**NORM, "split": "validation"}},
            {"refit_head": HEAD},
            {"refit_head": {**HEAD, "ridge": 2.0}},
            {"refit_head": {**HEAD, "method": "logistic"}},
            {"refit_head": {**HEAD, "split": "validation"}},
            {"mean": [0.5] * 3, "std": [0.5] * 3},
        )
    ]
    assert len(set(keys)) == len(keys)
    assert evaluator(images, home, batch_size=3).key == keys[0]


CONFIGS: dict[str, dict[str, Any]] = {
    "transformers": {"id2label": {"0": "newt", "1": "cat", "2": "Dog"}},
    "timm": {"architecture": "resnet18", "label_names": ["newt", "cat", "Dog"]},
}


@pytest.mark.parametrize("library", CONFIGS)
def test_classes_in_another_order_than_the_networks(images: str, home: Path, tmp_path: Path, library: str) -> None:
    with np.load(images) as data:
        np.savez(tmp_path / "named.npz", **data, classes=["cat", "dog", "newt"])
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[library]))

    def made(**args: Any) -> ImageClassification:
        dataset = {"path": str(tmp_path / "named.npz"), "split": "validation"}
        task = TaskConfig.model_validate({"name": "t", "dataset": dataset, "args": args})
        return ImageClassification(task, task.dataset, Context(home, base_folder=tmp_path))

    with pytest.raises(InputError, match="'cat' is class 0 of the data set, but class 1 of the network"):
        made()
    module = resnet(library)
    by_name = made(label_map="by_name").evaluate(candidate(module)).metrics
    with torch.no_grad():
        output = module(split_of(images, "validation")[0])
    predicted = (output.logits if library == "transformers" else output).argmax(1).numpy()
    labels = np.array([1, 2, 0])[split_of(images, "validation")[1]]
    assert by_name["accuracy"] == (predicted == labels).mean()
    by_number = made(label_map="by_number")
    assert by_number.evaluate(candidate(module)).metrics["accuracy"] != by_name["accuracy"]
    assert by_number.key != made(label_map="by_name").key
    fitted = made(refit_head=HEAD)  # has the data set's classes, whatever the network's are called
    assert fitted.evaluate(candidate(module)).metrics["accuracy"] > by_name["accuracy"]


@pytest.mark.parametrize("config", [{"num_classes": 2}, {"architectures": ["ViTForImageClassification"]}])
def test_a_label_that_the_network_does_not_have(images: str, home: Path, tmp_path: Path, config: dict) -> None:
    """transformers leaves ``id2label`` out of the config of two classes."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    task = TaskConfig.model_validate({"name": "t", "dataset": {"path": images, "split": "validation"}})
    with pytest.raises(InputError, match="has the label 2, but the network tells 2 classes apart"):
        ImageClassification(task, task.dataset, Context(home, base_folder=tmp_path))


def test_batches_of_statistics_are_never_cut(images: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = resnet("timm")

    def exhausted(inputs: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module, "forward", exhausted)
    with pytest.raises(InputError, match=r"does not fit in memory\. Set a smaller args\.batch_norm\.batch_size"):
        evaluator(images, home, batch_norm=NORM).evaluate(candidate(module))


def test_a_network_without_batch_norm(pico_vit: dict[str, str], home: Path) -> None:
    data = {"path": pico_vit["data"], "split": "validation"}
    task = {"name": "t", "dataset": data, "args": {"batch_norm": {"split": "validation"}}}
    config = {
        "base": pico_vit["base"],
        "models": [{"name": name, "source": pico_vit[name]} for name in ("first", "second")],
        "tasks": [task],
    }
    with pytest.raises(InputError, match=r"asks for args\.batch_norm, but .* has no batch-norm layer"):
        prepare(parse_config(config), home)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"batch_norm": {"size": 3}}, r"args\.batch_norm\.size"),
        ({"batch_norm": {"split": "no"}}, "no"),
        ({"refit_head": {"method": "magic"}}, r"args\.refit_head\.method"),
        ({"refit_head": {"ridge": 0}}, r"args\.refit_head\.ridge"),
        ({"batch_size": "huge"}, r"args\.batch_size"),
        ({"batchsize": 3}, "Did you mean 'batch_size'"),
        ({"label_map": "by_name"}, r"label_map needs a network whose config\.json names its classes"),
    ],
)
def test_faults_in_arguments(images: str, home: Path, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluator(images, home, **args)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_losses_are_float32_under_autocast(images: str, home: Path, precision: str) -> None:
    module = resnet("timm")
    exact = evaluator(images, home).evaluate(candidate(module)).metrics["cross_entropy"]
    low = Candidate(np.zeros(2), {}, lambda: module, precision=precision)
    found = evaluator(images, home, batch_norm=None).evaluate(low).metrics["cross_entropy"]
    assert found == pytest.approx(exact, rel=0.05)
    assert found != exact
