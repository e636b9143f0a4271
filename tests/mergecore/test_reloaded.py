"""An exported checkpoint gives the numbers of its run; one that was changed does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from mergecore.config_file import parse_config
from mergecore.errors import InputError, MergecoreError
from mergecore.evaluation import CandidateEvaluator
from mergecore.export import FACTS, export_model
from mergecore.reloaded import reload_and_measure
from mergecore.study import Study, prepare
from mergecore.upload import upload_checkpoint
from tests.conftest import rewrite
from tests.mergecore.evaluators.pico_texts import family, labelled

C = np.array([0.4, 0.7])


def exported(study: Study, folder: Path, *, task: str | None = None) -> Path:
    """Merged, measured in memory on all data, and written as `pick --export` does it."""
    evaluator = CandidateEvaluator(study)
    measured = {}
    for kind, indices in (("real", study.search_tasks), ("test", study.held_out_tasks)):
        outcomes = evaluator.evaluate(C, indices)
        items = [study.measured[index] for index in indices]
        measured[kind] = {i.task.name: o.metrics[i.task.metric] for i, o in zip(items, outcomes, strict=True)}
    names = [study.measured[index].task.name for index in study.search_tasks]
    head = study.measured[names.index(task)].head if task else None
    export_model(study, C, folder, measured=measured, head=head, task=task)
    return folder


@pytest.fixture
def merged(pico_config: dict[str, Any], home: Path, tmp_path: Path) -> Path:
    return exported(prepare(parse_config(pico_config), home), tmp_path / "merged")


def test_the_numbers_are_those_of_the_run(merged: Path, home: Path) -> None:
    found = reload_and_measure(merged, home)
    assert [task.task for task in found] == ["a", "b", "a (held out)", "b (held out)"]
    assert all(task.same for task in found)
    assert all(np.isfinite(task.expected) for task in found)


def test_a_changed_checkpoint_differs(merged: Path, home: Path) -> None:
    rewrite(merged, lambda state: state.update({k: v * 1.5 for k, v in state.items() if "classifier" in k}))
    assert not all(task.same for task in reload_and_measure(merged, home))
    result = CliRunner().invoke(app, ["verify", str(merged)])
    assert isinstance(result.exception, MergecoreError)
    assert "differs" in result.output


def test_heads_that_were_kept_apart(home: Path, tmp_path: Path) -> None:
    places = [family(tmp_path / str(n), "bert", num_labels=classes) for n, classes in enumerate((2, 3))]
    tasks = [
        {
            "name": f"t{n}",
            "evaluator": "sequence_classification",
            "dataset": {"path": labelled(tmp_path / f"{n}.jsonl", classes=classes), "split": "validation"},
        }
        for n, classes in enumerate((2, 3))
    ]
    config = {
        "base": places[0]["base"],
        "models": [{"name": f"t{n}", "source": place["first"]} for n, place in enumerate(places)],
        "tasks": tasks,
    }
    study = prepare(parse_config(config), home)
    assert study.heads
    whole = reload_and_measure(exported(study, tmp_path / "whole"), home)
    assert [(task.task, task.same) for task in whole] == [("t0", True), ("t1", True)]
    one = reload_and_measure(exported(study, tmp_path / "one", task="t1"), home)
    assert [(task.task, task.same) for task in one] == [("t1", True)]


def test_what_is_no_export_is_refused(pico_vit: dict[str, str], home: Path) -> None:
    with pytest.raises(InputError, match=r"has no mergecore\.json"):
        reload_and_measure(Path(pico_vit["base"]), home)
    with pytest.raises(InputError, match=r"has no mergecore\.json"):
        upload_checkpoint(Path(pico_vit["base"]), "me/merged", private=True)


def test_metrics_that_the_run_did_not_measure(merged: Path, home: Path) -> None:
    facts = json.loads((merged / FACTS).read_text())
    del facts["measured"]["real"]["a"]
    (merged / FACTS).write_text(json.dumps(facts))
    first = reload_and_measure(merged, home)[0]
    assert np.isnan(first.expected)
    assert first.same


class Hub:
    """What a hub would be asked for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, []

    def create_repo(self, repository: str, **options: Any) -> None:
        if self.error:
            raise self.error
        self.asked.append((repository, options))

    def upload_folder(self, **options: Any) -> Any:
        self.asked.append(options)
        return type("Commit", (), {"commit_url": "https://hub/commit"})


def test_an_upload_is_private_and_leaves_out_how_it_was_made_here(
    merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    assert upload_checkpoint(merged, "me/merged", private=True) == "https://hub/commit"
    (repository, options), upload = hub.asked
    assert (repository, options["private"]) == ("me/merged", True)
    assert upload["ignore_patterns"] == [FACTS]


def test_a_hub_that_cannot_be_reached_is_one_sentence(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(ConnectionError("no route")))
    with pytest.raises(MergecoreError, match="The upload to 'me/merged' failed: no route"):
        upload_checkpoint(merged, "me/merged", private=True)
