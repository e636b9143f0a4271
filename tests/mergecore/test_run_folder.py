"""The run folder: round trips to the last bit, whole files or none, broken folders named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mergecore.run_folder as run_folder
from mergecore.errors import InputError
from mergecore.run_folder import RUN_FILES, atomic_write, read_run, write_run
from mergecore.run_record import EVALUATION_FACTS, RunRecord
from tests.mergecore.records import make_record

NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=2, max_size=4, unique=True
)
METRICS = st.floats(allow_nan=True, allow_infinity=True)


@pytest.fixture
def plain_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that costs nothing, where the page is not what is tested."""
    monkeypatch.setattr("mergecore.run_folder.render_report", lambda record, *, folder=None: "page")


def assert_same(left: RunRecord, right: RunRecord) -> None:
    assert (left.name, left.models, left.tasks) == (right.name, right.models, right.tasks)
    pd.testing.assert_frame_equal(left.front, right.front, check_exact=True)
    pd.testing.assert_frame_equal(left.evaluations, right.evaluations, check_exact=True, check_dtype=False)
    assert left.summary == right.summary
    assert left.config == right.config


def test_a_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    record = make_record()
    write_run(tmp_path / "runs" / "study", record)
    back = read_run(tmp_path / "runs" / "study")
    assert_same(back, record)
    assert back.surrogates == record.surrogates
    assert sorted(path.name for path in (tmp_path / "runs" / "study").iterdir()) == sorted(RUN_FILES)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=NAMES,
    numbers=st.lists(METRICS, min_size=8, max_size=8),
    text=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_name_and_any_number_survive(
    tmp_path: Path, plain_page: None, names: list[str], numbers: list[float], text: str
) -> None:
    tasks = [name for name in names if f"c.{name}" not in names and name not in EVALUATION_FACTS]
    tasks = [name for name in tasks if name not in {f"c.{model}" for model in names}]
    record = make_record(models=names, tasks=tasks or ["task"], points=len(numbers))
    column = record.front.columns[-1]
    record.front[column] = numbers
    record.evaluations["status"] = text
    record.config = {"text": text, "numbers": [number for number in numbers if not math.isnan(number)]}
    record.summary = {"text": text, "finite": [number for number in numbers if math.isfinite(number)]}
    write_run(tmp_path, record)
    back = read_run(tmp_path)
    assert_same(back, record)
    finite = np.isfinite(numbers)  # the sign of zero and the last bit, not only equality
    assert (back.front[column].to_numpy()[finite].view(np.int64) == np.array(numbers)[finite].view(np.int64)).all()


def test_what_was_not_measured_is_an_empty_field_and_a_null(tmp_path: Path, plain_page: None) -> None:
    record = make_record(points=2, verified=1)
    record.surrogates["A"]["press_r2"] = math.nan
    record.surrogates["A"]["lower"] = None
    record.summary["noise"] = {"A": math.nan}
    write_run(tmp_path, record)
    rows = (tmp_path / "front.csv").read_text().splitlines()
    assert rows[0] == "c.m,c.n,predicted.A,predicted.B,real.A,real.B,test.A,test.B"
    assert rows[2].endswith(",,,,")
    assert json.loads((tmp_path / "surrogates.json").read_text())["A"]["press_r2"] is None
    assert json.loads((tmp_path / "summary.json").read_text())["noise"] == {"A": None}
    back = read_run(tmp_path)
    assert math.isnan(back.surrogates["A"]["press_r2"])
    assert back.surrogates["A"]["lower"] is None
    assert np.isnan(back.front_metrics("real")[1]).all()


def test_columns_that_are_missing_were_not_measured(tmp_path: Path, plain_page: None) -> None:
    record = make_record()
    record.front = record.front[[c for c in record.front if not c.startswith(("real.", "test."))]]
    record.evaluations = record.evaluations.drop(columns=["worker", "round"])
    write_run(tmp_path, record)
    back = read_run(tmp_path)
    assert np.isnan(back.front_metrics("test")).all()
    assert np.isfinite(back.front_metrics("predicted")).all()
    assert back.evaluations["worker"].tolist() == [""] * len(record.evaluations)
    assert back.evaluations["round"].isna().all()


def test_arrays_in_memory_come_back_as_lists(tmp_path: Path, plain_page: None) -> None:
    record = make_record()
    record.summary = {"reference": np.array([0.1, np.nan]), "count": np.int64(3), "pair": (1, 2), "path": Path("a/b")}
    write_run(tmp_path, record)
    assert read_run(tmp_path).summary == {"reference": [0.1, None], "count": 3, "pair": [1, 2], "path": "a/b"}


def test_config_keeps_its_order_and_has_no_aliases(tmp_path: Path, plain_page: None) -> None:
    record = make_record()
    shared = {"path": "x"}
    record.config = {"z": shared, "a": shared, "名": "é"}
    write_run(tmp_path, record)
    text = (tmp_path / "config.yaml").read_text("utf-8")
    assert text == "z:\n  path: x\na:\n  path: x\n名: é\n"
    assert yaml.safe_load(text) == record.config


def test_a_record_cannot_hold_what_no_file_can(tmp_path: Path, plain_page: None) -> None:
    record = make_record()
    record.summary = {"made": object()}
    with pytest.raises(TypeError, match="cannot hold a object"):
        write_run(tmp_path, record)


def test_a_failure_while_rendering_leaves_every_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, make_record())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr("mergecore.run_folder.render_report", fail)
    with pytest.raises(RuntimeError, match="no page"):
        write_run(tmp_path, make_record(seed=1))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failure_while_writing_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "file", "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(tmp_path / "file", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_summary_is_written_last(tmp_path: Path, plain_page: None, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(run_folder, "atomic_write", lambda path, text: written.append(path.name))
    write_run(tmp_path, make_record())
    assert sorted(written) == sorted(RUN_FILES)
    assert written[-1] == "summary.json"


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for use in (lambda: write_run(tmp_path / "file", make_record()), lambda: read_run(tmp_path / "file")):
        with pytest.raises(InputError, match="file"):
            use()
    with pytest.raises(InputError, match="no run folder"):
        read_run(tmp_path / "nothing")


@pytest.mark.parametrize("name", [name for name in RUN_FILES if name != "report.html"])
def test_an_unfinished_run_says_what_is_missing(tmp_path: Path, plain_page: None, name: str) -> None:
    write_run(tmp_path, make_record())
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"not a finished run: {name} is missing"):
        read_run(tmp_path)


def test_the_page_is_not_needed_to_read_a_run(tmp_path: Path, plain_page: None) -> None:
    write_run(tmp_path, make_record())
    (tmp_path / "report.html").unlink()
    assert read_run(tmp_path).name == "study"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("summary.json", b"{", "Expecting"),
        ("summary.json", b"[]", "mapping"),
        ("summary.json", b'{"name": "x"}', "'models'"),
        ("summary.json", b'{"name": "x", "models": [], "tasks": [{"nam": 1}]}', "nam"),
        ("summary.json", b"\xff", "utf-8"),
        ("surrogates.json", b"[1]", "mapping"),
        ("surrogates.json", b'{"A": 1}', "mapping"),
        ("surrogates.json", b"[" * 100_000, "recursion"),
        ("front.csv", b"", ""),
        ("front.csv", b"c.m,c.n\n", "columns"),
        ("front.csv", None, "row 1 has 3 fields instead of 8"),
        ("evaluations.csv", None, "row 1 has 3 fields instead of 9"),
        ("evaluations.csv", b'"c.m', ""),
        ("config.yaml", b"a: [", ""),
        ("config.yaml", b"- a\n", "mapping"),
        ("config.yaml", b"a: !!python/object:os.system {}\n", "constructor"),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path, plain_page: None, name: str, content: bytes | None, reason: str
) -> None:
    write_run(tmp_path, make_record())
    path = tmp_path / name
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + b"1,2,3\n" if content is None else content)
    with pytest.raises(InputError) as caught:
        read_run(tmp_path)
    assert f"{str(path)!r} is broken" in str(caught.value)
    assert reason.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_a_word_among_the_numbers_is_an_error(tmp_path: Path, plain_page: None) -> None:
    write_run(tmp_path, make_record())
    path = tmp_path / "front.csv"
    path.write_text(path.read_text().replace(path.read_text().splitlines()[1].split(",")[0], "seven"))
    with pytest.raises(InputError, match=r"front\.csv.*seven"):
        read_run(tmp_path)
