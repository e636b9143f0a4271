"""The folder a run leaves: what is in it, written whole or not at all, and read back to the last bit.

Shapes: K evaluated candidates, P points of the front, N models, T tasks.

======================  ==================================================================================
``config.yaml``         the resolved configuration, versions, fingerprints
``evaluations.csv``     one row for each coefficient vector: ``c.<model>``…, ``<task>``…, then ``round``,
                        ``seconds``, ``worker``, ``fingerprint``, ``status``
``surrogates.json``     for each task: A, b, e, link, bounds, held-out R², PRESS R² and their warnings
``front.csv``           ``c.<model>``…, ``predicted.<task>``…, ``real.<task>``…, ``test.<task>``…
``summary.json``        name, models, tasks and every figure of the run
``report.html``         the page of :mod:`mergecore.pages.report`
======================  ==================================================================================

Numbers round-trip exactly. NaN, a value that was not measured, is an empty field in CSV and null in JSON.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import yaml

from mergecore.budget import MINUTES
from mergecore.errors import InputError, first_line
from mergecore.files import atomic_write, check_writable
from mergecore.pages.report import render_report
from mergecore.plain import to_json, to_yaml
from mergecore.run_record import (
    EVALUATION_FACTS,
    FRONT_KINDS,
    RunRecord,
    TaskInfo,
    as_numbers,
    check_names,
    coefficient_columns,
    front_columns,
)

RUN_FILES = ("config.yaml", "evaluations.csv", "surrogates.json", "front.csv", "report.html", "summary.json")

_TEXT_FACTS = ("worker", "fingerprint", "status")
_UNBOUNDED = ("lower", "upper")
_Parsed = TypeVar("_Parsed")


def write_run(folder: str | Path, record: RunRecord) -> None:
    """Write the six files of a run into ``folder``, which is created when it does not exist.

    Everything is rendered before the first file is touched, so that a failure leaves the folder as it was;
    ``summary.json`` is replaced last. Columns that ``record`` has beyond those of the tables are not written.

    Raises:
        InputError: names that clash (see ``check_names``), or nothing can be written to ``folder``.
    """
    folder = Path(folder)
    tasks = [task.name for task in record.tasks]
    check_names(record.models, tasks)
    head = {"name": record.name, "models": list(record.models), "tasks": [asdict(task) for task in record.tasks]}
    texts = {
        "config.yaml": to_yaml(record.config),
        "evaluations.csv": _to_csv(_evaluation_table(record)),
        "surrogates.json": to_json(record.surrogates),
        "front.csv": _to_csv(_front_table(record)),
        "report.html": render_report(record, folder=folder),
        "summary.json": to_json({**head, **{key: value for key, value in record.summary.items() if key not in head}}),
    }
    check_writable(folder)
    for name in RUN_FILES:
        atomic_write(folder / name, texts[name])


def read_run(folder: str | Path) -> RunRecord:
    """Read a finished run back.

    Both tables come back with every column of the format, in its order. A JSON null comes back as NaN in a surrogate,
    but for its bounds, and as None elsewhere.

    Raises:
        InputError: the folder is not a finished run, or one of its files is broken; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no run folder {str(folder)!r}.")
    missing = [name for name in RUN_FILES if name != "report.html" and not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{str(folder)!r} is not a finished run: {missing[0]} is missing.",
            "Run the study again with this folder as --out; finished evaluations are not repeated.",
        )
    name, models, tasks, summary = _read(folder / "summary.json", _summary)
    names = [task.name for task in tasks]
    coefficients = coefficient_columns(models)
    metrics = [column for kind in FRONT_KINDS for column in front_columns(kind, tasks)]
    facts = [fact for fact in EVALUATION_FACTS if fact not in _TEXT_FACTS]
    evaluations = _read(
        folder / "evaluations.csv", lambda text: _from_csv(text, [*coefficients, *names, *facts], list(_TEXT_FACTS))
    )
    return RunRecord(
        name=name,
        models=models,
        tasks=tasks,
        front=_read(folder / "front.csv", lambda text: _from_csv(text, [*coefficients, *metrics], [])),
        evaluations=_whole_rounds(evaluations),
        surrogates=_read(folder / "surrogates.json", lambda text: _surrogates(json.loads(text))),
        summary=summary,
        config=_read(folder / "config.yaml", lambda text: _mapping(yaml.safe_load(text))),
    )


def finished_with(folder: Path, study: str) -> str:
    """When a run or comparison with this digest of its study finished in ``folder``; empty when none did.

    A run that may find more when it is run again has not finished: one whose time ran out.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))  # written last
    except (OSError, ValueError):
        return ""
    if not isinstance(summary, dict) or summary.get("study") != study:
        return ""
    ended = (summary.get("spent") or {}).get("ended")
    return "" if ended == MINUTES else str(summary.get("finished", ""))


def _front_table(record: RunRecord) -> pd.DataFrame:
    columns = coefficient_columns(record.models)
    columns += [column for kind in FRONT_KINDS for column in front_columns(kind, record.tasks)]
    return pd.DataFrame(as_numbers(record.front, columns), columns=columns)


def _evaluation_table(record: RunRecord) -> pd.DataFrame:
    frame = record.evaluations
    columns = [*coefficient_columns(record.models), *(task.name for task in record.tasks), "round", "seconds"]
    table = _whole_rounds(pd.DataFrame(as_numbers(frame, columns), columns=columns))
    for fact in _TEXT_FACTS:
        values = frame[fact] if fact in frame else [""] * len(frame)
        table[fact] = ["" if pd.isna(value) else str(value) for value in values]
    return table


def _whole_rounds(table: pd.DataFrame) -> pd.DataFrame:
    """Rounds are counted, so they are whole numbers unless one is unknown."""
    return table if table["round"].isna().any() else table.astype({"round": np.int64})


def _to_csv(table: pd.DataFrame) -> str:
    columns = [[_csv_field(value) for value in table[column].tolist()] for column in table]
    rows = [[_csv_field(column) for column in table.columns], *zip(*columns, strict=True)]
    return "".join(",".join(row) + "\n" for row in rows)


def _csv_field(value: str | float) -> str:
    if not isinstance(value, str):
        return "" if math.isnan(value) else repr(value)
    return '"' + value.replace('"', '""') + '"' if any(mark in value for mark in ',"\r\n') else value


def _from_csv(text: str, numbers: list[str], texts: list[str]) -> pd.DataFrame:
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    if header != numbers + texts:
        raise ValueError("its columns are not those of the models and tasks that summary.json names")
    for row, cells in enumerate(rows, start=1):
        if len(cells) != len(header):
            raise ValueError(f"row {row} has {len(cells)} fields instead of {len(header)}")
    table = {
        column: np.array([float(row[index] or "nan") for row in rows], dtype=np.float64)
        for index, column in enumerate(numbers)
    }
    return pd.DataFrame(table | {column: [row[len(numbers) + i] for row in rows] for i, column in enumerate(texts)})


def _read(path: Path, parse: Callable[[str], _Parsed]) -> _Parsed:
    """Parse a file's text; whatever is wrong with it becomes one sentence that names the file."""
    try:
        return parse(path.read_bytes().decode("utf-8"))
    except (ValueError, TypeError, KeyError, csv.Error, yaml.YAMLError, RecursionError) as error:
        reason = first_line(error)
        raise InputError(f"The file {str(path)!r} is broken: {reason}.", "Run the study again to rewrite it.") from None


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it does not hold a mapping of keys to values")
    return value


def _summary(text: str) -> tuple[str, list[str], list[TaskInfo], dict[str, Any]]:
    summary = _mapping(json.loads(text))
    for key, kind in (("name", str), ("models", list), ("tasks", list)):
        if not isinstance(summary.get(key), kind):
            raise ValueError(f"the key {key!r} is missing or of the wrong kind")
    models = [str(model) for model in summary.pop("models")]
    return summary.pop("name"), models, [TaskInfo(**_mapping(task)) for task in summary.pop("tasks")], summary


def _surrogates(value: Any) -> dict[str, dict[str, Any]]:
    return {
        task: {key: item if key in _UNBOUNDED else _nan_for_null(item) for key, item in _mapping(fit).items()}
        for task, fit in _mapping(value).items()
    }


def _nan_for_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_nan_for_null(item) for item in value]
    return math.nan if value is None else value
