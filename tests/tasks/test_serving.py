"""A front saved as an MLflow model: loaded, asked and served without a pickle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.serving import FrontPoints
from mergecore.study import Study, prepare
from tasks.serving import save_front
from tests.mergecore.evaluators.pico_texts import family, labelled, texts

POINTS = FrontPoints(
    np.array([[1.0, 0.0], [0.7, 0.6], [0.1, 0.9]]),
    np.array([[0.9, 0.2], [0.7, 0.7], [0.1, 0.9]]),
    (True, True),
    "none",
)


@pytest.fixture
def study(pico_config: dict[str, Any], home: Path) -> Study:
    return prepare(parse_config(pico_config), home)


@pytest.fixture
def saved(study: Study, tmp_path: Path) -> Path:
    save_front(study, POINTS, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def images(pico_vit: dict[str, str]) -> np.ndarray:
    with np.load(pico_vit["data"]) as data:
        return data["x_validation"]


def classes(study: Study, coefficients: np.ndarray) -> list[int]:
    """Of the first task's data, by its evaluator."""
    evaluator = CandidateEvaluator(study)
    evaluator.merge(coefficients)
    own: Any = evaluator.evaluator(0)
    return own.logits(evaluator.candidate(coefficients, None), np.arange(own.examples)).argmax(dim=1).tolist()


def test_the_model_answers_by_preference(study: Study, saved: Path, images: np.ndarray) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(str(saved))
    for r, point in (([1.0, 0.0], 0), ([0.0, 2.0], 2), ([1, 1], 1)):
        found = model.predict(images, params={"preference": r, "task": "a"})
        assert found["number"].tolist() == classes(study, POINTS.coefficients_PN[point])
    pd.testing.assert_frame_equal(model.predict(images), found)  # all tasks alike, and the first
    served = model.unwrap_python_model()._front
    assert served.merges == 3


def test_texts_come_as_lists_or_tables(tmp_path: Path, home: Path) -> None:
    import mlflow

    places = family(tmp_path, "bert", num_labels=3)
    data = {"path": labelled(tmp_path / "texts.jsonl", pairs=True), "split": "validation"}
    models = [{"name": name, "source": places[name]} for name in ("first", "second")]
    tasks = [{"name": n, "evaluator": "sequence_classification", "dataset": data} for n in "ab"]
    save_front(
        prepare(parse_config({"base": places["base"], "models": models, "tasks": tasks}), home),
        POINTS,
        tmp_path / "model",
    )
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    first, second = texts(6), texts(6, seed=1)
    pairs = model.predict([list(pair) for pair in zip(first, second, strict=True)])
    pd.testing.assert_frame_equal(model.predict(pd.DataFrame({"one": first, "two": second})), pairs)
    assert not model.predict(first).equals(pairs)
    pd.testing.assert_frame_equal(model.predict(pd.DataFrame({"text": first})), model.predict(first))


def test_nothing_is_pickled(saved: Path, tmp_path: Path) -> None:
    assert not [path for path in saved.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt")]
    description = yaml.safe_load((saved / "MLmodel").read_text())
    flavor = description["flavors"]["python_function"]
    assert flavor["loader_module"] == "mlflow.pyfunc.loaders.code_model"
    assert "python_model" not in flavor
    assert "mergecore<0.2,>=0.1.0" in (saved / "requirements.txt").read_text().splitlines()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".writing")] == []
    assert sorted(description["metadata"]["answering"]) == ["a", "b"]


def test_a_folder_in_use_is_left_alone_and_none_is_left_half(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="already exists"):
        save_front(study, POINTS, tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine.txt"]

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("mergecore.serving._write_task", fail)
    with pytest.raises(OSError, match="no space left"):
        save_front(study, POINTS, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ask(port: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and answer of one request."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_server_answers_and_refuses(study: Study, saved: Path, images: np.ndarray, tmp_path: Path) -> None:
    port = free_port()
    expected = classes(study, POINTS.coefficients_PN[0])
    shutil.rmtree(study.home)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(saved), "--env-manager", "local"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < until, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        for key in ("inputs", "instances"):
            status, answer = ask(port, {key: images.tolist(), "params": {"preference": [1, 0], "task": "b"}})
            assert status == 200, answer
            assert [row["number"] for row in answer["predictions"]] == expected
        for params, message in (
            ({"preference": [1.0]}, "A preference of 1 numbers for 2 tasks"),
            ({"preference": [2.0, -1.0]}, "negative or not finite"),
            ({"task": "c"}, "No task 'c' of this front answers inputs"),
        ):
            status, answer = ask(port, {"inputs": images[:1].tolist(), "params": params})
            assert (status, "stack_trace" in answer) == (400, False), answer
            assert message in answer["message"]
        status, answer = ask(port, {"inputs": ["a cat"]})
        assert status == 400
        assert "takes images" in answer["message"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
