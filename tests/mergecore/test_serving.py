"""A served front merges a preference once, and its folder is all that it needs."""

from __future__ import annotations

import pickletools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.pick import pick_point
from mergecore.run_record import RunRecord
from mergecore.serving import ServedFront, front_points, write_front
from mergecore.study import Study, prepare
from tests.mergecore.records import make_record
from tests.mergecore.served import (
    POINTS,
    evaluators_logits,
    images_of,
    probabilities,
    served,
    softmax,
    study,
)

__all__ = ["study"]  # a fixture


# what is merged


def test_a_preference_of_the_grid_gets_the_point_that_pick_finds() -> None:
    for metric, maximise in (("accuracy", True), ("cross_entropy", False)):
        record = make_record(tasks=("A", "B", "C"), metric=metric, maximise=maximise)
        points = front_points(record)
        for r in ([1.0, 0.0, 0.0], [1 / 3] * 3, [0.5, 0.25, 0.25], [0.1, 0.2, 0.7]):
            picked = pick_point(record, prefer=dict(zip("ABC", r, strict=True)))
            np.testing.assert_array_equal(points.coefficients(np.array(r)), list(picked.coefficients.values()))


def test_without_surrogates_points_are_those_that_were_measured() -> None:
    record = make_record(tasks=("A", "B"), points=12, verified=4)
    assert len(front_points(record).metrics_PT) == 12
    record.front = record.front.drop(columns=["predicted.A", "predicted.B"])
    points = front_points(record)
    np.testing.assert_array_equal(points.metrics_PT, record.front_metrics("real")[:4])
    np.testing.assert_array_equal(points.coefficients_PN, record.front_coefficients()[:4])
    blank = record.front.assign(**{"real.A": np.nan})
    with pytest.raises(InputError, match="No point"):
        front_points(RunRecord(**{**vars(record), "front": blank}))


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        pytest.param(None, [0.5, 0.5], id="all-alike"),
        pytest.param([3, 1], [0.75, 0.25], id="weights"),
        pytest.param({"b": 2.0}, [0.0, 1.0], id="names"),
        pytest.param([1.0, -0.0], [1.0, 0.0], id="negative-zero"),
    ],
)
def test_preferences_count_by_their_shares(study: Study, tmp_path: Path, preference: Any, expected: Any) -> None:
    front = served(study, tmp_path / "front")
    found = front.preference(preference)
    assert found.tolist() == expected
    assert not np.signbit(found).any()
    np.testing.assert_array_equal(front.coefficients(preference), POINTS.coefficients(np.array(expected)))


@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ([1.0], "1 numbers for 2 tasks"),
        ([0.5, 0.5, 0.0], "3 numbers for 2 tasks"),
        ([[0.5, 0.5]], "for 2 tasks"),
        ([-0.1, 1.1], "negative or not finite"),
        ([np.nan, 1.0], "negative or not finite"),
        ([0.0, 0.0], "above 0"),
        ([1e308, 1e308], "negative or not finite"),
        (["much", "more"], "one number a task"),
        ({"a": 0.5, "bb": 0.5}, "no task 'bb'. Did you mean 'b'"),
    ],
)
def test_bad_preferences(study: Study, tmp_path: Path, preference: Any, message: str) -> None:
    front = served(study, tmp_path / "front")
    with pytest.raises(InputError, match=message):
        front.predict(np.zeros((1, 1, 8, 8)), preference)
    assert front.merges == 0


# merging


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_networks_are_merged_once_while_they_are_kept(
    study: Study, tmp_path: Path, pico_vit: dict[str, str], kept: int
) -> None:
    images = images_of(pico_vit)[:4]
    front = served(study, tmp_path / "front", kept=kept)
    expected = {n: softmax(evaluators_logits(study, POINTS.coefficients_PN[p])[:4]) for n, p in enumerate((0, 1, 2))}
    preferences = [[1, 0], [1, 1], [0, 1]]
    asked = [0, 0, 1, 0, 1, 2, 2, 1, 0, 2, 0]
    memory: list[int] = []
    misses = 0
    for n in asked:
        misses += n not in memory
        memory = [*(m for m in memory if m != n), n][-kept:]
        np.testing.assert_allclose(probabilities(front.predict(images, preferences[n])), expected[n], rtol=1e-5)
        assert front.merges == misses


def test_threads_share_the_networks(study: Study, tmp_path: Path, pico_vit: dict[str, str]) -> None:
    images = images_of(pico_vit)[:4]
    front = served(study, tmp_path / "front")
    preferences = [[1, 0], [1, 1], [0, 1]]
    expected = [softmax(evaluators_logits(study, POINTS.coefficients_PN[p])[:4]) for p in range(3)]
    wrong: list[int] = []

    def ask(first: int) -> None:
        for turn in range(12):
            n = (first + turn) % 3
            if not np.allclose(probabilities(front.predict(images, preferences[n])), expected[n], rtol=1e-5):
                wrong.append(n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert front.merges == 3


def test_a_merge_that_fails_leaves_no_wrong_network(
    study: Study, tmp_path: Path, pico_vit: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(pico_vit)[:4]
    front = served(study, tmp_path / "front")
    before = probabilities(front.predict(images, [1, 0]))

    def half(self: CandidateEvaluator, coefficients: np.ndarray) -> None:
        self.weights_P.zero_()
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(CandidateEvaluator, "merge", half)
        with pytest.raises(MemoryError):
            front.predict(images, [0, 1])
    np.testing.assert_array_equal(probabilities(front.predict(images, [1, 0])), before)
    np.testing.assert_allclose(
        probabilities(front.predict(images, [0, 1])),
        softmax(evaluators_logits(study, POINTS.coefficients_PN[2])[:4]),
        rtol=1e-5,
    )


# the folder


def test_nothing_in_the_folder_is_a_pickle_and_names_are_no_paths(
    pico_config: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    names = ("<script>", "a task: 名前")
    tasks = [{**task, "name": name} for task, name in zip(pico_config["tasks"], names, strict=True)]
    study = prepare(parse_config({**pico_config, "tasks": tasks}), home)
    front = served(study, tmp_path / "in" / "front")
    assert front.tasks == front.answering == names
    assert [path.name for path in tmp_path.joinpath("in").iterdir()] == ["front"]
    for file in (path for path in (tmp_path / "in").rglob("*") if path.is_file()):
        assert file.suffix in (".json", ".safetensors", ".npy", ".bin", ".txt")
        if file.suffix == ".npy":
            np.load(file, allow_pickle=False)
        with pytest.raises((ValueError, AssertionError)):
            list(pickletools.genops(file.read_bytes()))


def test_the_task_matrix_is_linked_not_copied(study: Study, tmp_path: Path) -> None:
    write_front(study, POINTS, tmp_path / "front")
    for file in study.matrix_folder.iterdir():
        assert (tmp_path / "front" / "task_matrix" / file.name).samefile(file)


def test_a_study_that_answers_nothing(
    pico_config: dict[str, Any], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_metric.py").write_text("def score(candidate):\n    return 0.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"evaluator": "python", "metric": "score", "direction": "maximize", "args": {"function": "own_metric:score"}}
    config = {**pico_config, "tasks": [{"name": name, **own} for name in "ab"]}
    with pytest.raises(InputError, match="its evaluators are 'python'"):
        write_front(prepare(parse_config(config), home), POINTS, tmp_path / "front")
    assert not (tmp_path / "front").exists()
    data = {key: value for key, value in pico_config["tasks"][1]["dataset"].items() if key != "test_split"}
    config["tasks"][1] = {**pico_config["tasks"][1], "dataset": data}
    front = served(prepare(parse_config(config), home), tmp_path / "front")
    assert (front.tasks, front.answering) == (("a", "b"), ("b",))
    with pytest.raises(InputError, match="No task 'a' of this front answers"):
        front.predict(np.zeros((1, 1, 8, 8)), task="a")


def test_folders_that_are_no_fronts(tmp_path: Path, study: Study) -> None:
    with pytest.raises(InputError, match="no front that this version"):
        ServedFront(tmp_path)
    with pytest.raises(InputError, match="needs one"):
        served(study, tmp_path / "front", kept=0)
