"""The command line: wrong input ends with code 2 and one sentence, before any evaluation."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from flows import cli
from mergecore.run_folder import write_run
from mergecore.run_record import RunRecord, TaskInfo
from tests.conftest import rewrite


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mergecore", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def resized(state: dict[str, torch.Tensor]) -> None:
    name = next(name for name in state if name.endswith("layernorm.weight"))
    state[name] = torch.zeros(9)


def with_another_head(state: dict[str, torch.Tensor]) -> None:
    state["classifier.weight"] = torch.zeros(5, 8)
    state["classifier.bias"] = torch.zeros(5)


def broken_data(config: dict[str, Any], **arrays: np.ndarray) -> None:
    np.savez(config["tasks"][0]["dataset"]["path"], **arrays)


def drop(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing model": (lambda c: c["models"][0].update(source="nowhere/at/all"), "does not exist"),
    "missing data": (lambda c: c["tasks"][0]["dataset"].update(path="no.npz"), "The data file 'no.npz' does not exist"),
    "truncated safetensors": (
        lambda c: (f := Path(c["models"][1]["source"]) / "model.safetensors").write_bytes(f.read_bytes()[:900]),
        "not a complete safetensors file",
    ),
    "another architecture": (
        lambda c: rewrite(c["models"][0]["source"], lambda s: [s.pop(k) for k in list(s) if "layernorm" in k]),
        "'first' has another architecture",
    ),
    "another shape": (
        lambda c: rewrite(c["models"][1]["source"], resized),
        "layernorm.weight' has the shape [9] in the model 'second'",
    ),
    "a head and no task of its name": (
        lambda c: rewrite(c["models"][1]["source"], with_another_head),
        "no model is called 'a'",
    ),
    "one model": (lambda c: c["models"].pop(), "at least two fine-tuned models"),
    "no difference": (
        lambda c: c["models"].__setitem__(slice(None), [{"name": n, "source": c["base"]} for n in "xy"]),
        "identical to the base",
    ),
    "duplicate names": (lambda c: c["models"][1].update(name="first"), "'first' is used twice"),
    "unknown key": (lambda c: c.update(sarch={}), "unknown key 'sarch'. Did you mean 'search'?"),
    "unknown method": (lambda c: c["search"].update(method="mapp"), "Did you mean 'map'?"),
    "empty data": (
        lambda c: broken_data(c, x_validation=np.ones((0, 1, 8, 8)), y_validation=np.array([], dtype=int)),
        "is empty",
    ),
    "labels past the head": (
        lambda c: broken_data(
            c,
            x_validation=np.ones((2, 1, 8, 8), np.float32),
            y_validation=np.array([0, 7]),
            x_test=np.ones((1, 1, 8, 8), np.float32),
            y_test=np.array([0]),
        ),
        "label 7, but the network tells 3 classes apart",
    ),
    "range of a metric": (lambda c: c["tasks"][0].update(range=[0, 100]), "'accuracy' lies in [0.0, 1.0]"),
    "unknown metric": (lambda c: c["tasks"][0].update(metric="accuracyy"), "Did you mean 'accuracy'?"),
    "path as a name": (lambda c: c["tasks"][0].update(name="../../etc"), "looks like a path"),
    "no budget": (lambda c: c["search"].update(samples=0), "search.samples"),
    "some held out": (
        lambda c: c["tasks"][0].update(dataset=drop(c["tasks"][0]["dataset"], "test_split")),
        "Some tasks name a test_split",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_one_sentence_before_any_evaluation(fault, pico_config, home, tmp_path, command) -> None:
    change, message = BAD[fault]
    config = copy.deepcopy(pico_config)
    change(config)
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(config))
    # what only the weights' values tell is found by `run` when it prepares the study
    if fault == "no difference":
        from mergecore.config_file import load_config
        from mergecore.errors import InputError
        from mergecore.study import prepare

        with pytest.raises(InputError, match=message):
            prepare(load_config(file), home)
    else:
        for verb in ("check", "run"):
            code, out, err = command(verb, file)
            assert code == 2, err
            assert message in err
            assert "Traceback" not in out + err
            assert len(err.strip().splitlines()) == 1
    assert not (home / "ledger.sqlite").exists()


def test_missing_config_and_bad_option(tmp_path, command) -> None:
    assert command("check", tmp_path / "none.yaml")[0] == 2
    assert command("quickstart", "--tasks", "9")[0] == 2
    assert command("chek")[0] == 2
    code, _, err = command("pick", tmp_path, "--knee")
    assert code == 2
    assert "not a finished run" in err


def test_every_command_shows_an_example(command) -> None:
    for verb in ("quickstart", "check", "run", "convert", "pick", "compare"):
        code, out, _ = command(verb, "--help")
        assert code == 0
        assert f"mergecore {verb}" in out.split("Example:")[1]


def test_check_says_what_will_be_spent(pico_config, home, tmp_path, command) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(pico_config))
    code, out, err = command("check", file, "--set", "search.samples=5")
    assert code == 0
    assert "5 samples for a quadratic with 6 parameters" in err.replace("\n", " ")
    assert "8" in next(line for line in out.splitlines() if "coefficient vectors" in line)


def test_check_says_what_a_budget_leaves(pico_config, home, tmp_path, command) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(pico_config))
    budget = "{pairs: 10, minutes: 5, share: 0.25, grow: 0.5}"
    code, out, err = command("check", file, "--set", f"budget={budget}")
    assert code == 0
    assert "budget.pairs allows 6 of the 12" in err.replace("\n", " ")
    # six samples on a quarter of two tasks, three of them and three verified points on all data
    assert "cost 15 on all data" in " ".join(out.replace("│", " ").split())
    assert "5 minutes" in out
    code, _, err = command("check", file, "--set", "budget={pairs: 5}")
    assert (code, err.count("\n")) == (2, 1)
    assert "takes at least 6 (coefficient vector, task) evaluations" in err


def test_an_unexpected_error_ends_with_1_and_names_its_log(home, tmp_path, command, monkeypatch) -> None:
    monkeypatch.setattr("mergecore.choice.read_run", lambda folder: 1 / 0)
    code, _, err = command("pick", tmp_path, "--knee")
    assert code == 1
    assert "Unexpected ZeroDivisionError" in err
    assert "Traceback" not in err
    assert "ZeroDivisionError" in (home / "logs" / "crash.log").read_text()


def test_an_unexpected_error_that_no_log_can_take_is_shown(tmp_path, command, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MERGECORE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("mergecore.choice.read_run", lambda folder: 1 / 0)
    code, _, err = command("pick", tmp_path, "--knee")
    assert code == 1
    assert "Unexpected ZeroDivisionError" in err
    assert "Details: Traceback" in err


@pytest.mark.parametrize("words", [("check", "study.yaml"), ("run", "study.yaml"), ("quickstart",)], ids=lambda w: w[0])
def test_a_home_that_cannot_be_is_one_sentence(pico_config, tmp_path, command, monkeypatch, words) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(yaml.safe_dump(pico_config))
    Path("file").touch()
    monkeypatch.setenv("MERGECORE_HOME", str(tmp_path / "file"))
    code, _, err = command(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "file' is a file, not a folder. MERGECORE_HOME names" in err


def finished(folder: Path, name: str, front: list[list[float]]) -> Path:
    import pandas as pd

    metrics = np.array(front)
    columns = {"c.x": np.linspace(0, 1, len(front)), "c.y": np.linspace(1, 0, len(front))}
    columns |= {"predicted.a": metrics[:, 0], "predicted.b": metrics[:, 1]}
    real = metrics.copy()
    real[1] = np.nan
    columns |= {"real.a": real[:, 0], "real.b": real[:, 1]}
    tasks = [TaskInfo(name=t, metric="accuracy", maximise=True, lower=0.0, upper=1.0) for t in "ab"]
    record = RunRecord(
        name=name,
        models=["x", "y"],
        tasks=tasks,
        front=pd.DataFrame(columns),
        evaluations=pd.DataFrame({"c.x": [0.0], "c.y": [0.0], "a": [0.5], "b": [0.5], "round": [0]}),
        summary={"method": "map", "diagnosis": {"sentence": "A sentence."}},
    )
    write_run(folder, record)
    return folder


def test_pick_by_every_way(tmp_path, command) -> None:
    folder = finished(tmp_path / "r", "r", [[0.9, 0.1], [0.7, 0.7], [0.1, 0.9]])
    for options, point in (
        (["--prefer", "a=1"], 0),
        (["--prefer", "b=2"], 2),
        (["--prefer", "a=1", "--prefer", "b=1"], 1),
        (["--at-least", "a=0.5", "--maximize", "b"], 1),
        (["--maximize", "b"], 2),
        (["--knee"], 1),
        (["--at-least", "a=0.5", "--maximize", "b", "--verified"], 0),
    ):
        code, out, err = command("pick", folder, *options)
        assert code == 0, err
        assert f"point {point}," in out, options
    assert "not evaluated for real" in command("pick", folder, "--knee")[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Choose in one way"),
        (["--knee", "--prefer", "a=1"], "Choose in one way"),
        (["--prefer", "c=1"], "no task 'c'"),
        (["--prefer", "a"], "not of the form TASK=NUMBER"),
        (["--prefer", "a=-1"], "not a number from 0"),
        (["--prefer", "a=0"], "At least one preference"),
        (["--at-least", "a=0.5"], "needs --maximize"),
        (["--at-least", "a=1.5", "--maximize", "b"], "outside the range [0.0, 1.0]"),
        (["--at-least", "a=0.95", "--maximize", "b"], "0.9"),
    ],
)
def test_bad_picks(tmp_path, command, options, message) -> None:
    code, _, err = command("pick", finished(tmp_path / "r", "r", [[0.9, 0.1], [0.7, 0.7]]), *options)
    assert code == 2
    assert message in err


def test_compare_prints_and_writes(tmp_path, command) -> None:
    good = finished(tmp_path / "good", "good", [[0.9, 0.2], [0.8, 0.8], [0.2, 0.9]])
    bad = finished(tmp_path / "bad", "bad", [[0.5, 0.1], [0.4, 0.4], [0.1, 0.5]])
    code, out, err = command("compare", good, bad, "--out", tmp_path / "c")
    assert code == 0, err
    assert "hypervolume" in out
    import pandas as pd

    table = pd.read_csv(tmp_path / "c" / "compare.csv").set_index("run")
    assert table.loc["good", "hypervolume"] > table.loc["bad", "hypervolume"]
    assert table.loc["good", "GD"] == 0
    assert table.loc["good", "win rate"] > table.loc["bad", "win rate"]
    assert (tmp_path / "c" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert command("compare", good)[0] == 2


def test_the_installed_command_keeps_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "check", "none.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "The config 'none.yaml' does not exist."
