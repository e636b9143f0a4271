"""Where MLflow keeps what is logged: names that it accepts, and places that cannot be are one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergecore.errors import InputError
from tasks.tracking import experiment_id, metric_name, mlflow_client, tracking_uri


def test_metric_names_stay_apart_and_are_accepted() -> None:
    assert metric_name("metric/a b-c.d") == "metric/a b-c.d"
    assert metric_name("a<b") != metric_name("a>b")
    assert len(metric_name("é" * 400)) <= 250


def test_a_relative_database_lies_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None, Path("/h")) == "sqlite:////h/mlflow.db"
    assert tracking_uri("sqlite:///x.db", Path("/h")) == "sqlite:////h/x.db"
    assert tracking_uri("http://server:5000", Path("/h")) == "http://server:5000"


@pytest.mark.parametrize("fault", ["no such scheme", "nobody listens", "no database", "a folder", "below a file"])
def test_places_that_cannot_be(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "file").write_text("not a database, whatever its name says")
    uri = {
        "no such scheme": "ftp://somewhere",
        "nobody listens": "http://127.0.0.1:9",
        "no database": f"sqlite:///{tmp_path / 'file'}",
        "a folder": f"sqlite:///{tmp_path}",
        "below a file": f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}",
    }[fault]
    with pytest.raises(InputError) as told:
        experiment_id(mlflow_client(uri), "map", tmp_path)
    assert "\n" not in str(told.value)
    assert (f"MLflow cannot be used at {uri!r}: " in str(told.value)) is (fault != "below a file")
