"""A served front answers as the evaluators measure, from its own folder alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergecore.config_file import parse_config
from mergecore.data.tokenizers import find_tokenizer
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.fronts.interpolate import interpolated_coefficients
from mergecore.pareto_moe.routed_study import route, train_routers
from mergecore.study import Study, prepare
from tests.mergecore.evaluators.pico_clip import transformers_clips
from tests.mergecore.evaluators.pico_texts import family, labelled, texts
from tests.mergecore.served import (
    POINTS,
    evaluators_logits,
    images_of,
    probabilities,
    served,
    softmax,
    study,
    two_tasks,
)

__all__ = ["study"]  # a fixture


def test_images_at_a_point_of_the_front(study: Study, tmp_path: Path, pico_vit: dict[str, str], home: Path) -> None:
    images = images_of(pico_vit)
    expected = {r: evaluators_logits(study, POINTS.coefficients(np.array(r))) for r in ((1.0, 0.0), (0.5, 0.5))}
    measured = CandidateEvaluator(study).evaluate(POINTS.coefficients_PN[0], [0])[0].metrics["accuracy"]
    front = served(study, tmp_path / "front")
    for place in (home, *map(Path, (pico_vit["base"], pico_vit["first"], pico_vit["second"]))):
        shutil.rmtree(place)
    Path(pico_vit["data"]).rename(tmp_path / "elsewhere.npz")
    for preference, logits in expected.items():
        for inputs in (images, images.tolist(), images[:, 0], images.transpose(0, 2, 3, 1)):
            table = front.predict(inputs, preference)
            np.testing.assert_array_equal(table["number"], logits.argmax(axis=1))
            np.testing.assert_allclose(probabilities(table), softmax(logits), rtol=1e-5)
        np.testing.assert_array_equal(table["class"], table["number"].map("LABEL_{}".format))
    with np.load(tmp_path / "elsewhere.npz") as data:
        labels = data["y_validation"]
    assert float((front.predict(images, [1, 0])["number"] == labels).mean()) == measured


def test_between_points_the_network_is_the_merge_of_the_interpolated_coefficients(
    study: Study, tmp_path: Path, pico_vit: dict[str, str]
) -> None:
    preference = np.array([0.722, 0.278])
    coefficients = interpolated_coefficients(preference, **vars(POINTS))
    assert not (coefficients == POINTS.coefficients_PN).all(axis=1).any()
    table = served(study, tmp_path / "front").predict(images_of(pico_vit), preference)
    np.testing.assert_allclose(probabilities(table), softmax(evaluators_logits(study, coefficients)), rtol=1e-5)


def test_bytes_are_normalised_as_the_evaluator_does(tmp_path: Path, home: Path, pico_vit: dict[str, str]) -> None:
    generator = np.random.default_rng(3)
    pixels = generator.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    classes = np.array(["cat", "dog", "bear"])
    np.savez(tmp_path / "bytes.npz", x_validation=pixels, y_validation=generator.integers(0, 3, 30), classes=classes)
    places = {**pico_vit, "data": str(tmp_path / "bytes.npz")}
    study = prepare(parse_config(two_tasks(places, args={"mean": [0.4], "std": [0.2]})), home)
    front = served(study, tmp_path / "front")
    logits = evaluators_logits(study, POINTS.coefficients_PN[2])
    for inputs in (pixels, pixels.tolist(), pixels.astype(np.float32)):
        table = front.predict(inputs, [0, 1])
        np.testing.assert_allclose(probabilities(table), softmax(logits), rtol=1e-5)
    assert table["class"].tolist() == classes[logits.argmax(axis=1)].tolist()
    assert {"p.cat", "p.dog", "p.bear"} <= set(table.columns)
    for wrong in (pixels + 0.5, pixels.astype(int) * 2, -pixels.astype(int)):
        with pytest.raises(InputError, match="whole numbers from 0 to 255"):
            front.predict(wrong)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 1, 8, 9)), r"shape \[b, 1, 8, 8\] or \[b, 8, 8, 1\], not \[2, 1, 8, 9\]"),
        (np.zeros((8, 8)), "shape"),
        ([], "shape"),
        (["a cat"], "no array of numbers"),
        ([[[1.0], [1.0, 2.0]]], "no array of numbers"),
        (np.full((1, 1, 8, 8), np.inf), "not finite"),
        (None, "shape|finite|numbers"),
    ],
)
def test_inputs_that_are_no_images(study: Study, tmp_path: Path, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        served(study, tmp_path / "front").predict(inputs)


@pytest.mark.parametrize(
    "moved", [("vision_model",), ("vision_model", "text_model")], ids=["text-frozen", "all-merged"]
)
def test_clip(tmp_path: Path, home: Path, moved: tuple[str, ...]) -> None:
    generator = np.random.default_rng(0)
    images = generator.normal(size=(40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x_validation=images, y_validation=generator.integers(0, 3, 40))
    places = dict(zip(("base", "first", "second"), transformers_clips(tmp_path, moved=moved), strict=True))
    places["data"] = str(tmp_path / "images.npz")
    args = {"class_names": ["cat", "dog", "bear"], "templates": ["a {}.", "the {}!"]}
    study = prepare(parse_config(two_tasks(places, evaluator="clip_zero_shot", args=args)), home)
    front = served(study, tmp_path / "front", kept=1)
    for preference, point in (([1, 0], 0), ([0, 1], 2), ([1, 0], 0)):
        logits = evaluators_logits(study, POINTS.coefficients_PN[point])
        table = front.predict(images, preference)
        np.testing.assert_array_equal(table["number"], logits.argmax(axis=1))
        np.testing.assert_allclose(probabilities(table), softmax(logits), rtol=1e-4)
        assert table["class"].tolist() == [args["class_names"][n] for n in table["number"]]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_texts_and_pairs(tmp_path: Path, home: Path, kind: str) -> None:
    pairs = kind == "bert"
    changes = {} if pairs else {"pad_token_id": None}
    places = family(tmp_path, kind, num_labels=3, **changes)
    places["data"] = labelled(tmp_path / "texts.jsonl", pairs=pairs)
    study = prepare(parse_config(two_tasks(places, evaluator="sequence_classification")), home)
    front = served(study, tmp_path / "front")
    rows = [json.loads(line) for line in Path(places["data"]).read_text().splitlines()]
    inputs = [[row["sentence1"], row["sentence2"]] if pairs else row["text"] for row in rows]
    logits = evaluators_logits(study, POINTS.coefficients_PN[1])
    for given in (inputs, np.array(inputs)):
        table = front.predict(given)
        np.testing.assert_array_equal(table["number"], logits.argmax(axis=1))
        np.testing.assert_allclose(probabilities(table), softmax(logits), rtol=1e-4)
    for wrong in ([], [1, 2], [["a", "b", "c"]], ["a", ["b", "c"]], [["a", 3]]):
        with pytest.raises(InputError, match="takes a list of texts, or of pairs"):
            front.predict(wrong)


def test_nats_of_texts(tmp_path: Path, home: Path) -> None:
    places = {**family(tmp_path, "llama-lm"), "data": labelled(tmp_path / "texts.jsonl")}
    task = {"evaluator": "perplexity", "metric": "loss", "args": {"window": 6, "stride": 3}}
    study = prepare(parse_config(two_tasks(places, **task)), home)
    front = served(study, tmp_path / "front")
    asked = [text for text in texts(12, seed=7) if " " in text]
    table = front.predict(asked, [1, 0])
    evaluator = CandidateEvaluator(study)
    evaluator.merge(POINTS.coefficients_PN[0])
    module = evaluator.candidate(POINTS.coefficients_PN[0], None).module()
    tokenizer = find_tokenizer(study.measured[0].context).load()
    for row, text in enumerate(asked):
        ids = tokenizer.plain([text])[0].tolist()
        nats = []
        for place in range(1, len(ids)):
            begin = next(begin for begin in range(0, len(ids), 3) if begin + 6 >= place)
            with torch.no_grad():
                logits = module(torch.tensor([ids[begin:place]])).logits[0, -1].double()
            nats.append(-float(torch.log_softmax(logits, 0)[ids[place]]))
        assert table["tokens"][row] == len(nats)
        assert table["nats_per_token"][row] == pytest.approx(np.mean(nats), rel=1e-5)
        assert table["perplexity"][row] == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)
    with pytest.raises(InputError, match="the text 1 has no token"):
        front.predict(["w1 w2", ""])
    with pytest.raises(InputError, match="takes a list of texts"):
        front.predict([["w1", "w2"]])


@pytest.mark.parametrize("refit", [False, True], ids=["statistics", "statistics-and-head"])
def test_what_is_fitted_after_a_merge_is_fitted_here_too(tmp_path: Path, home: Path, refit: bool) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    places = {"data": str(tmp_path / "data.npz")}
    torch.manual_seed(0)
    module = ResNetForImageClassification(ResNetConfig(**shape, num_labels=5))
    for name in ("base", "first", "second"):
        module.save_pretrained(tmp_path / name)
        places[name] = str(tmp_path / name)
        for tensor in module.parameters():
            tensor.data += 0.1 * torch.randn_like(tensor)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 96), ("validation", 60)):
        labels = rng.integers(0, 3, count)
        arrays[f"x_{split}"] = rng.normal(labels[:, None, None, None] - 1, 1.0, (count, 3, 16, 16)).astype(np.float32)
        arrays[f"y_{split}"] = labels
    np.savez(places["data"], **arrays)
    args = {"batch_norm": {"batch_size": 32}} | ({"refit_head": {}} if refit else {})
    study = prepare(parse_config(two_tasks(places, args=args)), home)
    front = served(study, tmp_path / "front")
    Path(places["data"]).unlink()
    shutil.rmtree(home / "data")
    table = front.predict(arrays["x_validation"], [1, 0])
    front.predict(arrays["x_validation"], [0, 1])
    np.savez(places["data"], **arrays)
    measured = CandidateEvaluator(study).evaluate(POINTS.coefficients_PN[0], [0])[0].metrics["accuracy"]
    assert float((table["number"] == arrays["y_validation"]).mean()) == measured
    assert probabilities(table).shape[1] == (3 if refit else 5)


def test_each_task_has_its_own_head(tmp_path: Path, home: Path, pico_vit: dict[str, str]) -> None:
    from tests.conftest import rewrite

    def other_head(state: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(9)
        state["classifier.weight"] = torch.randn(5, 8, generator=generator)
        state["classifier.bias"] = torch.randn(5, generator=generator)

    rewrite(pico_vit["second"], other_head)
    file = Path(pico_vit["second"]) / "config.json"
    names = {str(n): f"kind {n}" for n in range(5)}
    file.write_text(json.dumps({**json.loads(file.read_text()), "id2label": names, "label2id": {}}))
    config = two_tasks(pico_vit)
    for task, head in zip(config["tasks"], ("first", "second"), strict=True):
        task["head"] = head
    study = prepare(parse_config(config), home)
    assert set(study.heads) >= {"first", "second"}
    front = served(study, tmp_path / "front")
    for index, task in enumerate(("t1", "t2")):
        table = front.predict(images_of(pico_vit), [1, 0], task)
        logits = evaluators_logits(study, POINTS.coefficients_PN[0], index)
        assert logits.shape[1] == (3, 5)[index]
        np.testing.assert_allclose(probabilities(table), softmax(logits), rtol=1e-5)
    assert table["class"].str.startswith("kind ").all()
    assert front.merges == 1


def test_routers_are_unloaded_at_the_preference(pico_config: dict[str, Any], home: Path, tmp_path: Path) -> None:
    tasks = [{**task, "metric": "accuracy"} for task in pico_config["tasks"]]
    search = {"method": "pwe_moe", "modules": "attn+mlp", "steps": 3, "batch_size": 4}
    config = parse_config({**pico_config, "tasks": tasks, "search": search})
    plain = prepare(config, home)
    routed = route(plain, config.search)
    _, file = train_routers(routed, config.search)
    study = plain.routed(file)
    front = served(study, tmp_path / "front", points=None)
    images = images_of({"data": pico_config["tasks"][0]["dataset"]["path"]})  # type: ignore[index]
    for preference in ([1.0, 0.0], [0.123, 0.877]):
        np.testing.assert_array_equal(front.coefficients(preference), preference)
        table = front.predict(images, preference)
        logits = evaluators_logits(study, np.array(preference))
        np.testing.assert_array_equal(table["number"], logits.argmax(axis=1))
        np.testing.assert_allclose(probabilities(table), softmax(logits), rtol=1e-5)
