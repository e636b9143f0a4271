"""CLIPs of both libraries against their own forward pass; text features are computed once, or for each candidate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mergecore.architectures.hub_transformers import quiet_transformers
from mergecore.config import TaskConfig
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator, Outcome
from mergecore.evaluators import clip_zero_shot
from mergecore.evaluators.base import Context
from mergecore.evaluators.clip_zero_shot import ClipZeroShot
from mergecore.study import Study, prepare
from tests.mergecore.evaluators.pico_clip import VISION, open_clips, transformers_clips

NAMES = ["cat", "dog", "polar bear"]
TEMPLATES = ["a photo of a {}.", 'the number: "{}"', "{}!"]
C = [0.4, 0.7]
LIBRARIES: dict[str, Callable[..., list[str]]] = {"transformers": transformers_clips, "open_clip": open_clips}


@pytest.fixture
def images(tmp_path: Path) -> str:
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "x_test": generator.normal(size=(41, 3, 8, 8)).astype(np.float32),
        "y_test": np.append(generator.integers(0, 3, 40), 2),
    }
    np.savez(tmp_path / "images.npz", **arrays)
    return str(tmp_path / "images.npz")


def studied(places: list[str], images: str, home: Path, **args: Any) -> Study:
    args = {"class_names": NAMES, "templates": TEMPLATES} | args
    config = {
        "base": places[0],
        "models": [{"name": f"m{n}", "source": place} for n, place in enumerate(places[1:])],
        "tasks": [{"name": "t", "evaluator": "clip_zero_shot", "dataset": {"path": images}, "args": args}],
    }
    return prepare(parse_config(config), home)


def measured(study: Study, c: list[float] = C) -> Outcome:
    found = CandidateEvaluator(study).evaluate(c, [0])[0]
    assert not found.reason
    return found


def merged_state(places: list[str], file: str, c: list[float]) -> dict[str, torch.Tensor]:
    base, *models = (load_file(Path(place) / file) for place in places)
    return {
        name: tensor + sum(x * (model[name] - tensor) for x, model in zip(c, models, strict=True))
        for name, tensor in base.items()
    }


def transformers_logits(places: list[str], x: torch.Tensor, c: list[float]) -> torch.Tensor:
    """From the model's own ``logits_per_image``, one sentence at a time: those are scale · cos(image, sentence)."""
    from transformers import AutoTokenizer, CLIPModel

    with quiet_transformers():
        model = CLIPModel.from_pretrained(places[0]).eval()
        tokenizer = AutoTokenizer.from_pretrained(places[0])
    model.load_state_dict(merged_state(places, "model.safetensors", c))
    columns = []
    with torch.no_grad():
        for name in NAMES:
            found = [model(pixel_values=x, **tokenizer(t.format(name), return_tensors="pt")) for t in TEMPLATES]
            texts = torch.cat([output.text_embeds for output in found]).mean(0)
            # the mean's length is divided out: cosine with the mean, not mean of the cosines
            columns.append(sum(output.logits_per_image[:, 0] for output in found) / len(found) / texts.norm())
    return torch.stack(columns, dim=1)


def open_clip_logits(places: list[str], x: torch.Tensor, c: list[float]) -> torch.Tensor:
    """By the library's own zero-shot classifier."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{places[0]}").eval()
    model.load_state_dict(merged_state(places, "open_clip_model.safetensors", c))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{places[0]}")
    with torch.no_grad():
        head = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, [t.format for t in TEMPLATES])
        return model.logit_scale.exp() * model.encode_image(x, normalize=True) @ head


PLAIN = {"transformers": transformers_logits, "open_clip": open_clip_logits}


@pytest.mark.parametrize("moved", [VISION, ("",)], ids=["vision merged", "all merged"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_equals_a_plain_loop(tmp_path: Path, images: str, home: Path, library: str, moved: tuple[str, ...]) -> None:
    places = LIBRARIES[library](tmp_path, moved=moved)
    found = measured(studied(places, images, home))
    with np.load(images) as data:
        x, y = torch.from_numpy(data["x_test"]), torch.from_numpy(data["y_test"])
    logits = PLAIN[library](places, x, C)
    assert len(logits.argmax(1).unique()) == 3  # all classes are predicted
    assert found.metrics["accuracy"] == float((logits.argmax(1) == y).double().mean())
    expected = float(torch.nn.functional.cross_entropy(logits, y))
    assert found.metrics["cross_entropy"] == pytest.approx(expected, rel=1e-5)
    assert all(error > 0 for error in found.noise.values())
    assert found.noise.keys() == found.metrics.keys()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the text tower encodes all prompts."""
    calls: list[int] = []
    encode = clip_zero_shot.text_features

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return encode(*args, **kwargs)

    monkeypatch.setattr(clip_zero_shot, "text_features", counting)
    return calls


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_frozen_text_tower_encodes_once_for_all_workers(
    tmp_path: Path, images: str, home: Path, encoded: list[int], library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studied(LIBRARIES[library](tmp_path, moved=(*VISION, "logit_scale")), images, home)
    worker = CandidateEvaluator(study)
    first = [worker.evaluate(c, [0])[0].metrics for c in (C, [0.9, 0.1])]
    assert len(encoded) == 1
    monkeypatch.setattr(clip_zero_shot, "tokenize", None)  # another worker, or run, touches no tokenizer either
    other = CandidateEvaluator(study)
    assert [other.evaluate(c, [0])[0].metrics for c in (C, [0.9, 0.1])] == first
    assert len(encoded) == 1
    assert first[0] != first[1]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_merged_text_tower_encodes_for_each_candidate(
    tmp_path: Path, images: str, home: Path, encoded: list[int], library: str
) -> None:
    study = studied(LIBRARIES[library](tmp_path, moved=(*VISION, "text", "token_embedding")), images, home)
    worker = CandidateEvaluator(study)
    first, _, again = (worker.evaluate(c, [0])[0].metrics for c in (C, [0.9, 0.1], C))
    assert len(encoded) == 3
    assert first == again


def test_cached_features_belong_to_prompts_and_weights(
    tmp_path: Path, images: str, home: Path, encoded: list[int]
) -> None:
    places = transformers_clips(tmp_path)
    measured(studied(places, images, home))
    measured(studied(places, images, home, templates=TEMPLATES[:2]))
    measured(studied(places, images, home, class_names=["cat", "cow", "polar bear"]))
    assert len(encoded) == 3
    (tmp_path / "other").mkdir()
    measured(studied([places[0], places[2], places[1]], images, home))
    assert len(encoded) == 4
    measured(studied(places, images, home, batch_size=2))
    assert len(encoded) == 4


def test_the_batch_size_changes_nothing_but_rounding(tmp_path: Path, images: str, home: Path) -> None:
    places = transformers_clips(tmp_path, moved=("",))
    one, two = (measured(studied(places, images, home, batch_size=size)).metrics for size in ("auto", 2))
    assert one["accuracy"] == two["accuracy"]
    assert one["cross_entropy"] == pytest.approx(two["cross_entropy"], rel=1e-6)


def evaluator(place: str, images: str, home: Path, **args: Any) -> ClipZeroShot:
    given = {"name": "t", "evaluator": "clip_zero_shot", "dataset": {"path": images}, "args": args}
    task = TaskConfig.model_validate(given)
    return ClipZeroShot(task, task.dataset, Context(home, base=place, base_folder=Path(place)))


def test_key_follows_prompts_and_tokenizer_but_not_the_batch_size(tmp_path: Path, images: str, home: Path) -> None:
    place = transformers_clips(tmp_path)[0]
    own = {"class_names": NAMES, "templates": TEMPLATES}
    keys = [evaluator(place, images, home, **own).key]
    assert evaluator(place, images, home, **own, batch_size=3).key == keys[0]
    keys.append(evaluator(place, images, home, class_names=NAMES[::-1]).key)
    keys.append(evaluator(place, images, home, class_names=NAMES, templates=TEMPLATES[::-1]).key)
    file = Path(place) / "tokenizer.json"
    file.write_text(file.read_text().replace("\n", "", 1))
    keys.append(evaluator(place, images, home, **own).key)
    assert len(set(keys)) == 4


def test_prompts_of_a_known_data_set(tmp_path: Path, images: str, home: Path) -> None:
    place = transformers_clips(tmp_path)[0]
    made = evaluator(place, images, home, class_names="tanganke/eurosat", templates="chest_xray_1")
    assert made._classes[9] == "lake or sea"
    assert made._templates[0] == "a chest X-ray showing {}."


def test_classes_are_called_as_the_data_set_calls_them(tmp_path: Path, images: str, home: Path) -> None:
    place = transformers_clips(tmp_path)[0]
    with np.load(images) as data:
        np.savez(tmp_path / "named.npz", **data, classes=NAMES)
    named = str(tmp_path / "named.npz")
    own = evaluator(place, named, home, templates=TEMPLATES)
    assert own._classes == NAMES
    assert evaluator(place, named, home, templates=TEMPLATES, class_names=NAMES).key == own.key
    assert evaluator(place, named, home, class_names=["tomcat", "dog", "bear"])._classes[2] == "bear"
    with pytest.raises(InputError, match=r"'dog' is class 1 of the data set .*, but number 0 of args\.class_names"):
        evaluator(place, named, home, class_names=["dog", "cat", "polar bear"])
    with pytest.raises(InputError, match=r"has 4 class names, but the data set .* 3 classes"):
        evaluator(place, named, home, class_names=[*NAMES, "newt"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "does not say what its classes are called"),
        ({"class_names": ["cat", "dog"]}, "has 2 class names, but the data set .* 3 classes"),
        ({"class_names": ["cat", "dog", "cat"]}, "two classes are called 'cat'"),
        ({"class_names": "sun379"}, "Did you mean 'sun397'"),
        ({"class_names": NAMES, "templates": ["a photo"]}, r"the template 'a photo' must hold \{\} once"),
        ({"class_names": NAMES, "templates": ["{} and {}"]}, r"must hold \{\} once"),
        ({"class_names": NAMES, "templates": []}, "args.templates is empty"),
        ({"class_names": NAMES, "prompts": "sun397"}, "knows no args.prompts"),
    ],
)
def test_faults_in_prompts(tmp_path: Path, images: str, home: Path, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluator(transformers_clips(tmp_path)[0], images, home, **args)


def test_a_folder_without_tokenizer(tmp_path: Path, images: str, home: Path) -> None:
    place = transformers_clips(tmp_path)[0]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path(place) / name).unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        evaluator(place, images, home, class_names=NAMES)


def test_a_classifier_is_no_clip(pico_vit: dict[str, str], home: Path) -> None:
    task = {
        "name": "t",
        "evaluator": "clip_zero_shot",
        "dataset": {"path": pico_vit["data"], "split": "validation"},
        "args": {"class_names": NAMES},
    }
    for name in ("base", "first", "second"):
        (Path(pico_vit[name]) / "vocab.txt").write_text("a\n")
    models = [{"name": name, "source": pico_vit[name]} for name in ("first", "second")]
    with pytest.raises(InputError, match="is no CLIP, it has no tensor 'logit_scale'"):
        prepare(parse_config({"base": pico_vit["base"], "models": models, "tasks": [task]}), home)
