"""What a person reads in the terminal: our progress and results, nothing else; the rest goes to a named log file."""

from __future__ import annotations

import json
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mergecore.budget import spent_sentence
from mergecore.files import home_folder, writable_home

if TYPE_CHECKING:
    import pandas as pd

    from mergecore.pick import Pick
    from mergecore.preflight import CheckResult
    from mergecore.reloaded import Reloaded
    from mergecore.run_record import RunRecord
    from tasks.model_registry import Registered

SHOWN_POINTS = 12
FOREIGN_LOGGERS = ("prefect", "mlflow", "alembic", "ray", "httpx", "urllib3", "transformers", "torch", "pymoo")


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Run flows in this process with a quiet terminal and a Prefect API to talk to.

    Args:
        folder: the run's folder, named in the log.
    """
    log = writable_home() / "logs" / "run.log"
    log.parent.mkdir(exist_ok=True)
    # before prefect is imported: its console handler reads this once
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from flows.server import prefect_server

    with _foreign_logs_to(log), prefect_server(home_folder() / "logs" / "prefect-server.log"):
        logging.getLogger("prefect").info("run folder %s", folder)
        yield


@contextmanager
def _foreign_logs_to(log: Path) -> Iterator[None]:
    """Send the libraries' log records and warnings to a file instead of the terminal."""
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in (*FOREIGN_LOGGERS, "py.warnings")]
    logging.captureWarnings(True)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it would report that there is no GPU
    for logger in loggers:
        logger.addHandler(handler)
    logging.getLogger("py.warnings").propagate = False
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def note_crash(error: BaseException) -> str:
    """Append the traceback of an unexpected error to a log, and say where that is; the traceback if it cannot be."""
    text = "".join(traceback.format_exception(error))
    log = home_folder() / "logs" / "crash.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as sink:
            sink.write(text)
    except OSError:  # a full disk may be what went wrong
        return text.rstrip()
    return str(log)


def relative(path: Path) -> str:
    """The path as a person in the working folder would type it."""
    absolute = path.resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def print_check(name: str, result: CheckResult) -> None:
    """The preflight's findings."""
    table = Table(title=Text(f"{name}: ready to run"), show_header=False, title_justify="left")
    candidates, one = ("preferences", "preference") if result.training else ("coefficient vectors", "coefficients")
    rows = {
        "models": str(result.models),
        "tasks": str(result.tasks),
        "parameters": f"{result.parameters:,}",
        "task matrix on disk": f"at most {_bytes(result.matrix_bytes)} of {_bytes(result.disk_free_bytes)} free",
        "memory of a worker": f"{_bytes(result.worker_bytes)} beside the shared task matrix",
        "training": result.training,
        candidates: str(result.coefficient_vectors),
        f"({one}, task) evaluations": f"at most {result.evaluations}{_worth(result)}",
        "time of an evaluation": ", ".join(f"{task}: {seconds:.2g} s" for task, seconds in result.seconds.items()),
        "time of them all": _estimated(result),
        "the search ends after": f"{result.minutes:g} minutes" if result.minutes else "",
        "examples": ", ".join(f"{task}: {count or 'unknown'}" for task, count in result.examples.items()),
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, Text(value))
    Console().print(table)
    print_notes(result.warnings)


def _worth(result: CheckResult) -> str:
    return f"; search and verification cost {result.full_pairs:.0f} on all data" if result.share < 1 else ""


def _estimated(result: CheckResult) -> str:
    total = result.total_seconds
    if total is None:
        return ""
    shown = f"{total:.0f} s" if total < 120 else f"{total / 60:.0f} min" if total < 7200 else f"{total / 3600:.1f} h"
    return f"about {shown} with {result.workers} workers, from one timed batch a task"


def print_notes(notes: Sequence[str]) -> None:
    """Warnings, one a line, on standard error."""
    for note in notes:
        Console(stderr=True).print(Text(f"Note: {note}"))


def print_versions(versions: Mapping[str, Registered | None]) -> None:
    """Versions of a registered model and what speaks for them, a row each."""
    shown = {label: version for label, version in versions.items() if version is not None}
    table = Table(show_edge=False)
    for heading in ("", "source", *(columns := list(dict.fromkeys(t for v in shown.values() for t in v.metrics)))):
        table.add_column(Text(heading))
    for label, version in shown.items():
        metrics = [f"{version.metrics[task]:.4f}" if task in version.metrics else "" for task in columns]
        table.add_row(Text(label), Text(version.source), *metrics)
    Console().print(table)


def print_front(record: RunRecord) -> None:
    """The verified points of a front, best first on the first task, with the sentence on the trade-off."""
    real, test = record.front_metrics("real"), record.front_metrics("test")
    shown, kind = (test, "held-out") if np.isfinite(test).any() else (real, "real")
    if not np.isfinite(shown).any():
        shown, kind = record.front_metrics("predicted"), "predicted"
    rows = np.flatnonzero(np.isfinite(shown).all(axis=1))
    sign = 1 if record.tasks[0].maximise else -1
    rows = rows[np.argsort(-sign * shown[rows, 0], kind="stable")]
    metrics = sorted({task.metric for task in record.tasks})
    title = f"{record.name}: {len(record.front)} points on the Pareto front; {kind} {', '.join(metrics)} of {len(rows)}"
    if len(rows) > SHOWN_POINTS:
        rows = rows[np.linspace(0, len(rows) - 1, SHOWN_POINTS).astype(int)]
        title += f" ({SHOWN_POINTS} shown)"
    table = Table(title=Text(title), title_justify="left")
    for task in record.tasks:
        table.add_column(Text(task.name), justify="right")
    letter, measured = ("r", "preference") if record.takes_preferences else ("c", "coefficient vector")
    for name in record.models:
        table.add_column(Text(f"{letter}.{name}"), justify="right", style="dim")
    coefficients = record.front_coefficients()
    for row in rows:
        values = [f"{value:.3f}" for value in shown[row]] + [f"{c:.2f}" for c in coefficients[row]]
        table.add_row(*values)
    console = Console()
    console.print()
    console.print(table)
    counts, timings = record.summary["evaluations"], record.summary["timings"]
    console.print(Text(record.summary["diagnosis"]["sentence"]))
    line = f"{counts['coefficient_vectors']} {measured}s evaluated in {timings['evaluate']:.0f} s"
    parts = [f"{counts['known_pairs']} were known"] if counts["known_pairs"] else []
    parts += [f"{counts['failed']} failed (reasons in evaluations.csv)"] if counts["failed"] else []
    if parts:
        line += f"; of {counts['pairs']} ({measured}, task) evaluations {' and '.join(parts)}"
    console.print(Text(f"{line}."))
    console.print(Text(spent_sentence(record.summary["spent"], measured=measured)))


def print_pick(record: RunRecord, choice: Pick) -> None:
    """The chosen point: coefficients, or the preference in their place, and metrics."""
    table = Table(
        title=Text(f"{record.name}: {_which(choice)}"),
        title_justify="left",
    )
    owner, coordinate = ("task", "preference") if record.takes_preferences else ("model", "scaling coefficient")
    table.add_column(owner)
    table.add_column(coordinate, justify="right")
    for name, value in choice.coefficients.items():
        table.add_row(Text(name), f"{value:.6f}")
    metrics = Table()
    metrics.add_column("task")
    for kind in choice.metrics:
        metrics.add_column({"test": "held out"}.get(kind, kind), justify="right")
    for task in record.tasks:
        metrics.add_row(
            Text(f"{task.name} ({task.metric})"), *(f"{values[task.name]:.4f}" for values in choice.metrics.values())
        )
    console = Console()
    console.print(table)
    if not choice.metrics:
        console.print("This merge was not evaluated.")
        return
    console.print(metrics)
    if choice.metrics.keys() == {"predicted"}:
        console.print("This point was not evaluated for real; --verified chooses among those that were.")


def print_verified(folder: Path, found: Sequence[Reloaded]) -> None:
    """What a checkpoint on disk gives, beside what the run measured."""
    table = Table(title=Text(f"{relative(folder)}: reloaded and measured"), title_justify="left")
    for column in ("task", "run", "reloaded", ""):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in found:
        known = np.isfinite(task.expected)
        verdict = "same" if known and task.same else "differs" if known else "not measured by the run"
        expected = f"{task.expected:.6f}" if known else ""
        table.add_row(Text(f"{task.task} ({task.metric})"), expected, f"{task.found:.6f}", verdict)
    Console().print(table)


def _which(choice: Pick) -> str:
    if choice.index < 0:
        return "as preferred"
    if choice.chosen_by == "preference":
        return f"point {choice.index}, as preferred"
    return f"point {choice.index}, chosen by {choice.chosen_by} metrics"


def print_comparison(table: pd.DataFrame) -> None:
    """One column a run, one row a measure, so that it fits a narrow terminal."""
    shown = Table()
    shown.add_column("")
    for name in table["run"]:
        shown.add_column(Text(str(name)), justify="right")
    for measure in table.columns.drop("run"):
        values = (Text(f"{v:.4f}" if isinstance(v, float) else str(v)) for v in table[measure])
        shown.add_row(Text(str(measure)), *values)
    Console().print(shown)


def print_methods(folder: Path) -> None:
    """The preference-weighted sums in a comparison's folder."""
    sums = json.loads((folder / "summary.json").read_text())["preference_sums"]
    table = Table(title=Text("Preference-weighted sums, mean"), title_justify="left")
    table.add_column("method")
    for count in sums:
        table.add_column(f"N = {count}", justify="right")
    for method in dict.fromkeys(name for found in sums.values() for name in found):
        cells = (f"{found[method]:.4f}" if method in found else "" for found in sums.values())
        table.add_row(Text(method), *cells)
    Console().print(table)


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
