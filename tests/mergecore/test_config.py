"""The YAML file: what is accepted, and one clear sentence for what is not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergecore.config import StudyConfig
from mergecore.config_file import load_config, parse_config
from mergecore.errors import InputError

GOOD: dict[str, Any] = {
    "name": "study",
    "base": "base.safetensors",
    "models": [{"name": "a", "source": "a.safetensors"}, {"name": "b", "source": "b.safetensors"}],
    "tasks": [{"name": "t", "dataset": {"path": "d.npz"}}],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    data: Any = copy.deepcopy(GOOD)
    node = data
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[int(last) if last.isdigit() else last] = value
    return data


def test_defaults() -> None:
    config = parse_config(GOOD)
    assert config.search.method == "map"
    assert config.tasks[0].maximise is True
    assert config.tasks[0].bounds == (0.0, 1.0)
    assert parse_config(changed("tasks.0.metric", "cross_entropy")).tasks[0].maximise is False
    assert parse_config(changed("search.method", "direct")).search.method == "direct"


def test_round_trip() -> None:
    config = parse_config(changed("search.box", [[0.0, 1.0], [-1.0, 2.0]]))
    again = parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("serach", {}, "unknown key 'serach'. Did you mean 'search'?"),
        ("front.poplation", 10, "unknown key 'front.poplation'. Did you mean 'population'?"),
        ("tasks.0.metrc", "accuracy", "Did you mean 'metric'?"),
        ("tasks.0.dataset.pth", "x", "Did you mean 'path'?"),
        (
            "tasks.0.dataset.columns",
            {"lable": "x"},
            "unknown key 'tasks.0.dataset.columns.lable'. Did you mean 'label'?",
        ),
        ("search.sampels", 3, "Did you mean 'samples'?"),
        ("search.method", "mapp", "unknown search method 'mapp'. Did you mean 'map'?"),
        ("search.samples", 0, "search.samples: Input should be greater than or equal to 1"),
        ("search.samples", "many", "search.samples:"),
        ("search.sampler", "sobl", "search.sampler:"),
        ("search.box", [1.0, 0.0], "lower < upper"),
        ("search.box", [[0, 1]], "1 pairs for 2 models"),
        ("search.box", [0, float("inf")], "search.box"),
        ("front.algorithm", "nsga4", "unknown front algorithm 'nsga4'. Did you mean 'nsga3'?"),
        ("merge.transform", "tise", "unknown transform 'tise'"),
        ("tasks.0.evaluator", "image_clasification", "Did you mean 'image_classification'?"),
        ("tasks.0.metric", "acuracy", "does not measure 'acuracy'. Did you mean 'accuracy'?"),
        ("tasks.0.range", [1.0, 0.0], "the range [1.0, 0.0] of 'accuracy' is empty"),
        ("tasks.0.range", [0.0, 100.0], "'accuracy' lies in [0.0, 1.0], not in [0.0, 100.0]"),
        ("models", [GOOD["models"][0]], "at least two fine-tuned models, the config names 1"),
        ("models", [], "at least two fine-tuned models"),
        ("models.1.name", "a", "the name 'a' is used twice"),
        ("tasks", [], "name at least one task"),
        ("tasks", [GOOD["tasks"][0]] * 2, "the name 't' is used twice"),
        ("models.0.name", "../evil", "looks like a path"),
        ("tasks.0.name", "a/b", "looks like a path"),
        ("tasks.0.name", "a\\b", "looks like a path"),
        ("name", ".hidden", "looks like a path"),
        ("name", "line\nbreak", "control characters"),
        ("name", " ", "must not be empty"),
        ("tasks.0.name", "round", "'round'"),
        ("search.box", [0.0], "search.box: too few values"),
        ("search.box", [0, 1, 2], "search.box: Tuple should have at most 2 items"),
        ("search.box", [[0, 1], 3], "search.box.1: Input should be a valid tuple"),
        ("merge.heads", [1], "merge.heads.0: Input should be a valid string."),
        ("merge.heads", 3, "merge.heads: Input should be a valid list, or 'auto' or 'merge'."),
        ("list", 1, "unknown key 'list'"),
        ("direct", {"samples": 3}, "unknown key 'direct'"),
        ("front.int", 1, "unknown key 'front.int'"),
        ("models.0.list", 1, "unknown key 'models.0.list'"),
        ("execution.gpus_per_worker", float("inf"), "execution.gpus_per_worker: Input should be a finite number"),
        ("search.box", [[0, 1], [0, "x"]], "search.box.1.1: Input should be a valid number"),
        ("execution.workers", 0, "execution.workers: Input should be greater than or equal to 1, or 'auto'."),
        ("execution.workers", "two", "execution.workers: Input should be a valid integer"),
        ("execution.minutes_per_evaluation", -1, "minutes_per_evaluation: Input should be greater than 0, or 'auto'."),
        ("execution.gpus_per_worker", 1.5, "execution.gpus_per_worker: a part of a GPU or whole ones, not 1.5"),
        ("execution.precision", "half", "execution.precision: Input should be 'auto', 'float32', 'bfloat16' or"),
        ("front.verify", -1, "front.verify"),
        ("base", None, "base"),
    ],
)
def test_faults_are_one_sentence(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(changed(path, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "?." not in str(caught.value)


def test_missing_key() -> None:
    data = {key: value for key, value in GOOD.items() if key != "base"}
    with pytest.raises(InputError, match="the key 'base' is missing"):
        parse_config(data)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>"[:-9] + ">", "quo\"te's", "emoji 🦀", "a=b, c", "x" * 300])
def test_odd_names_are_data(name: str) -> None:
    assert parse_config(changed("tasks.0.name", name)).tasks[0].name == name


def test_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(GOOD))
    config = load_config(file, ["search.samples=7", "tasks.0.metric=cross_entropy", "front.verify=0", "name='x=y'"])
    assert (config.search.samples, config.tasks[0].metric, config.front.verify) == (7, "cross_entropy", 0)
    assert config.name == "x=y"
    for bad in ("search", "=3", "search..a=1", "tasks.9.name=x", "base.deeper=1", "name={"):
        with pytest.raises(InputError):
            load_config(file, [bad])


def test_unreadable_files(tmp_path: Path) -> None:
    cases = {
        "none.yaml": None,
        "list.yaml": b"- a",
        "broken.yaml": b"a: [",
        "binary.yaml": b"\xff\xfe\x00",
        "object.yaml": b"a: !!python/object/apply:os.system ['true']",
        "bomb.yaml": b"".join(
            b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9) if i else b"x") for i in range(9)
        ),
        "loop.yaml": b"a: &a [*a]",
        "big.yaml": b"#" * (2 << 20),
    }
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            load_config(tmp_path / name)


def test_the_schema_for_a_form_lists_the_methods_options() -> None:
    schema = StudyConfig.model_json_schema()
    assert {"MapOptions", "DirectOptions"} <= set(schema["$defs"])
    forms = [choice["$ref"].rpartition("/")[2] for choice in schema["properties"]["search"]["anyOf"]]
    assert {"MapOptions", "DirectOptions", "PweMoeOptions"} <= set(forms)  # one of them also where no method is named


def test_a_finished_runs_config_is_a_config(pico_config) -> None:
    assert parse_config({**pico_config, "resolved": {"versions": {"torch": "2"}}}) == parse_config(pico_config)
