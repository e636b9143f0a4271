"""From a finished run to a checkpoint, measured again and registered, or to a package; done twice, it is done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.export import export_flow
from flows.map import map_flow
from flows.package import package_flow
from mergecore.choice import Choice
from mergecore.config_file import parse_config
from mergecore.errors import EvaluationError, InputError
from mergecore.export import FACTS
from mergecore.run_folder import read_run
from tasks.model_registry import promote
from tasks.tracking import mlflow_client
from tests.conftest import make_pico_config, make_pico_vit, rewrite

pytestmark = pytest.mark.usefixtures("prefect_api", "ray_cluster")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pico models and their run."""
    return tmp_path_factory.mktemp("export")


@pytest.fixture
def run(place: Path, ray_cluster: None, prefect_api: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run's folder, shared by this module's tests; the working folder is beside it."""
    monkeypatch.setenv("MERGECORE_HOME", str(place / "home"))
    monkeypatch.chdir(place)
    if not (place / "run").exists():
        map_flow(parse_config(make_pico_config(make_pico_vit(place))), "run")
    return "run"


def test_a_point_becomes_a_checkpoint_and_a_candidate(run: str, place: Path, capsys: Any) -> None:
    choice = Choice(maximize="a", verified=True)
    folder = export_flow(run, choice, register_as="pico")
    facts = json.loads(Path(folder, FACTS).read_text())
    record = read_run(run)
    assert facts["run_id"] == record.summary["tracking"]["run_id"]
    assert facts["measured"]["real"]["a"] == record.front_metrics("real")[:, 0][~record.front["real.a"].isna()].max()
    assert export_flow(run, choice, register_as="pico") == folder
    assert f"The checkpoint {folder!r} is there already." in capsys.readouterr().err
    client = mlflow_client(record.summary["tracking"]["uri"])
    (version,) = client.search_model_versions("name = 'pico'")
    assert version.run_id == facts["run_id"]  # one version, and it belongs to the run that found it
    assert promote("pico", place / "home")[1].metrics.keys() == {"a", "b"}

    elsewhere = export_flow(run, Choice(maximize="b", verified=True))
    assert Path(elsewhere).parent == Path("exports")
    assert elsewhere != folder


def test_a_checkpoint_with_other_numbers_is_an_error(run: str, place: Path) -> None:
    choice = Choice(knee=True, verified=True)
    folder = export_flow(run, choice, out="damaged")
    rewrite(folder, lambda state: [tensor.mul_(-1) for name, tensor in state.items() if "classifier" in name])
    with pytest.raises(EvaluationError, match="does not give the numbers of its run"):
        export_flow(run, choice, out="damaged", register_as="damaged")
    assert not mlflow_client(read_run(run).summary["tracking"]["uri"]).search_model_versions("name = 'damaged'")
    with pytest.raises(InputError, match="already exists"):
        export_flow(run, Choice(maximize="a"), out="damaged")


def test_a_front_is_packaged_once(run: str, capsys: Any) -> None:
    folder = package_flow(run)
    assert Path(folder, "MLmodel").is_file()
    assert package_flow(run) == folder
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(InputError, match="already exists"):
        package_flow(run, out=folder)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(), "Choose in one way"),
        (Choice(prefer={"a": 1.0}, knee=True), "Choose in one way"),
        (Choice(maximize="c"), "'c'"),
        (Choice(method="map", knee=True), "is no comparison"),
    ],
)
def test_a_choice_that_names_no_point(run: str, choice: Choice, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export_flow(run, choice)
