"""A finished run becomes one model that is asked with a preference, unless its models are no longer what was merged."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows import cli
from mergecore.config_file import RESOLVED, parse_config
from mergecore.evaluation import CandidateEvaluator
from mergecore.pareto_moe.routed_study import route, train_routers
from mergecore.pick import pick_point
from mergecore.run_folder import read_run, write_run
from mergecore.run_record import RunRecord
from mergecore.serving import ServedFront
from mergecore.study import Study, prepare
from tests.conftest import rewrite
from tests.mergecore.records import make_record


def package(monkeypatch: pytest.MonkeyPatch, run: Path, target: Path) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["mergecore", "package", str(run), str(target)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def written(study: Study, folder: Path) -> RunRecord:
    """A run of the study with a random front, written and read back."""
    record = make_record(tasks=("a", "b"), models=("first", "second"))
    record.config = {**study.config.model_dump(mode="json"), RESOLVED: {"fingerprints": study.fingerprints}}
    write_run(folder, record)
    return read_run(folder)


def classes(study: Study, coefficients: np.ndarray) -> list[int]:
    evaluator = CandidateEvaluator(study)
    evaluator.merge(coefficients)
    own: Any = evaluator.evaluator(0)
    return own.logits(evaluator.candidate(coefficients, None), np.arange(own.examples)).argmax(dim=1).tolist()


def test_a_front_of_coefficients(
    pico_config: dict[str, Any], pico_vit: dict[str, str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = prepare(parse_config(pico_config), home)
    record = written(study, tmp_path / "run")
    assert package(monkeypatch, tmp_path / "run", tmp_path / "servable") == 0
    front = ServedFront(tmp_path / "servable" / "front", threads=1)
    with np.load(pico_vit["data"]) as data:
        found = front.predict(data["x_validation"], {"a": 0.7, "b": 0.3})["number"].tolist()
    picked = pick_point(record, prefer={"a": 0.7, "b": 0.3})
    assert found == classes(study, np.array(list(picked.coefficients.values())))


def test_a_front_of_routers(
    pico_config: dict[str, Any], pico_vit: dict[str, str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [{**task, "metric": "accuracy"} for task in pico_config["tasks"]]
    search = {"method": "pwe_moe", "modules": "attn+mlp", "steps": 2, "batch_size": 4}
    config = parse_config({**pico_config, "tasks": tasks, "search": search})
    plain = prepare(config, home)
    options: Any = config.search
    _, file = train_routers(route(plain, options), options)
    written(plain, tmp_path / "run")
    assert package(monkeypatch, tmp_path / "run", tmp_path / "servable") == 0
    study = plain.routed(file)
    front = ServedFront(tmp_path / "servable" / "front", threads=1)
    with np.load(pico_vit["data"]) as data:
        found = front.predict(data["x_validation"], [0.35, 0.65])["number"].tolist()
    assert found == classes(study, np.array([0.35, 0.65]))


def test_what_has_changed_or_is_no_run_is_refused(
    pico_config: dict[str, Any],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert package(monkeypatch, tmp_path / "nowhere", tmp_path / "servable") == 2
    written(prepare(parse_config(pico_config), home), tmp_path / "run")
    (tmp_path / "used").mkdir()
    shutil.copyfile(tmp_path / "run" / "front.csv", tmp_path / "used" / "mine.csv")
    assert package(monkeypatch, tmp_path / "run", tmp_path / "used") == 2
    rewrite(pico_config["models"][0]["source"], lambda state: state["classifier.bias"].add_(torch.ones(3)))
    capsys.readouterr()
    assert package(monkeypatch, tmp_path / "run", tmp_path / "servable") == 2
    assert "have changed since this run" in capsys.readouterr().err
    assert not (tmp_path / "servable").exists()
