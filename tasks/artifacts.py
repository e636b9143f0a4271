"""What a person sees while and after a run: progress in the terminal, and Prefect's artifacts."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from mergecore.budget import spent_sentence
from mergecore.comparison.folder import tables_page
from mergecore.comparison.methods import Comparison
from mergecore.comparison.tables import preference_table, wide_preferences
from mergecore.pick import Pick
from mergecore.run_record import RunRecord

PLAIN_SECONDS = 10.0  # between plain lines when the output is no terminal
ARTIFACT_SECONDS = 2.0  # between updates of the artifact in the Prefect UI


def _reader_is_gone(console: Console) -> None:
    """Say nothing more; rich would end the process, and with it a study whose Prefect worker died."""
    console.quiet = True


Console.on_broken_pipe = _reader_is_gone  # type: ignore[method-assign, assignment]  # Prefect's own consoles too


class Progress:
    """One bar with rate and remaining time in a terminal, plain lines elsewhere, a progress artifact in Prefect.

    Nothing is shown for work that ends before the first update is due.

    Args:
        label: what is being done.
        unit: what is counted.
    """

    def __init__(self, label: str, *, unit: str) -> None:
        self._label = label
        self._unit = unit
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None
        self._bar_task: Any = None
        self._began = self._printed = self._shown = time.monotonic()
        self._artifact: UUID | None = None
        self._last = (-1, -1)
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Say how far the work is; cheap enough to call for every item."""
        now = time.monotonic()
        if (done, total) == self._last:
            return
        self._last = (done, total)
        if done and self._first is None:
            self._first = (now, done)  # what comes before is start-up and says nothing of the rate
        if total and self._console.is_terminal:
            self._update_bar(done, total)
        elif total and (now - self._printed >= PLAIN_SECONDS or (done == total and self._printed > self._began)):
            self._printed = now
            rate = self._rate(now, done)
            pace = f", {rate:.1f}/s" if rate else ""
            left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
            self._console.print(f"{self._label}: {done}/{total} {self._unit}{pace}{left}", highlight=False)
        if total and (now - self._shown >= ARTIFACT_SECONDS or (done == total and self._artifact)):
            self._shown = now
            self._update_artifact(100.0 * done / total)

    def _update_bar(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar_task = self._bar.add_task(self._label, total=total, rate="")
            self._bar.start()
        rate = self._rate(time.monotonic(), done)
        shown = f"{rate:.1f} {self._unit}/s" if rate else ""
        self._bar.update(self._bar_task, completed=done, total=total, rate=shown)

    def _rate(self, now: float, done: int) -> float:
        """Units a second since the first one was done; 0 while unknown."""
        if self._first is None or done <= self._first[1]:
            return 0.0
        return (done - self._first[1]) / max(now - self._first[0], 1e-9)

    def _update_artifact(self, percent: float) -> None:
        if not _in_run():
            return
        with suppress(Exception):  # a picture of the progress must never stop the progress
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, description=f"{self._label} ({self._unit})")  # type: ignore[assignment]
            else:
                update_progress_artifact(self._artifact, percent)


def tell(sentence: str) -> None:
    """One sentence about the whole run: to the terminal, and as its summary in the Prefect UI."""
    Console(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)
    if _in_run():
        create_markdown_artifact(markdown=_markdown(sentence), key="summary")


def publish(record: RunRecord, pictures: Mapping[str, bytes], *, report: str, tracking: str) -> None:
    """The front as a table, pictures, the figures of the run, and where to find the rest.

    Args:
        record: the finished run.
        pictures: what they show to PNG.
        report: path of report.html.
        tracking: address of the MLflow run for a person to open.
    """
    if not _in_run():
        return
    shown = record.front.dropna(axis=1, how="all").round(4)
    values = shown.astype(object).where(shown.notna(), None).to_numpy().tolist()
    rows = [dict(zip(map(str, shown.columns), row, strict=True)) for row in values]
    create_table_artifact(table=rows, key="front", description=f"Pareto front of {_markdown(record.name)}")
    create_markdown_artifact(markdown=_summary(record, pictures, report, tracking), key="summary")
    if tracking.startswith(("http://", "https://")):
        create_link_artifact(link=tracking, link_text="MLflow run", key="mlflow")


def publish_point(record: RunRecord, point: Pick, folder: str, registered: str | None) -> None:
    """A chosen point of a front, and what became of it.

    Args:
        record: the finished run.
        point: of its front.
        folder: of the checkpoint.
        registered: its source in MLflow's registry, if it has one.
    """
    lines = [f"# {_markdown(record.name)}", "| coefficient | |", "|---|---|"]
    lines += [f"| {_markdown(name)} | {value:.4f} |" for name, value in point.coefficients.items()]
    for kind, metrics in point.metrics.items():
        lines += ["", f"| {kind} | |", "|---|---|"]
        lines += [f"| {_markdown(name)} | {_number(value)} |" for name, value in metrics.items()]
    lines += ["", f"Checkpoint: `{_markdown(folder)}`"]
    lines += ["", f"Registered: `{_markdown(registered)}`"] if registered else []
    create_markdown_artifact(markdown="\n".join(lines), key="export")


def publish_comparison(comparison: Comparison, pictures: Mapping[str, bytes], *, report: str, tracking: str) -> None:
    """The preference-weighted sums as a table; tables, pictures and where to find the rest as a page.

    Args:
        comparison: finished.
        pictures: name to PNG.
        report: path of report.html.
        tracking: address of the MLflow run for a person to open.
    """
    if not _in_run():
        return
    sums = wide_preferences(preference_table(comparison))
    create_table_artifact(
        table=[dict(zip(map(str, sums.columns), row, strict=True)) for row in sums.itertuples(index=False, name=None)],
        key="preference-sums",
        description=f"Preference-weighted sums by number of models, {_markdown(comparison.name)}",
    )
    lines = [
        f"# {_markdown(comparison.name)}",
        tables_page(comparison),
        *_shown(pictures),
        f"Report: `{_markdown(report)}`; MLflow: `{_markdown(tracking)}`",
    ]
    create_markdown_artifact(markdown="\n\n".join(lines), key="comparison")


def _summary(record: RunRecord, pictures: Mapping[str, bytes], report: str, tracking: str) -> str:
    volume = record.summary["hypervolume"]
    counts = record.summary["evaluations"]
    measured = "preference" if record.takes_preferences else "coefficient vector"
    lines = [
        f"# {_markdown(record.name)}",
        _markdown(record.summary["diagnosis"]["sentence"]),
        *_shown(pictures),
        "| | |",
        "|---|---|",
        f"| points on the front | {len(record.front)} |",
        f"| {measured}s evaluated | {counts['coefficient_vectors']} |",
        f"| ({measured}, task) evaluations | {counts['pairs']}, {counts['failed']} failed |",
        f"| budget | {_markdown(spent_sentence(record.summary['spent'], measured=measured))} |",
        f"| hypervolume, verified front | {_number(volume['real'])} |",
        f"| report | `{_markdown(report)}` |",
        f"| MLflow | `{_markdown(tracking)}` |",
    ]
    return "\n".join(lines)


def _shown(pictures: Mapping[str, bytes]) -> list[str]:
    """Markdown of pictures."""
    return [
        f"![{_markdown(name)}](data:image/png;base64,{base64.b64encode(picture).decode()})"
        for name, picture in pictures.items()
    ]


def _number(value: float | None) -> str:
    return "not measured" if value is None or value != value else f"{value:.4f}"


def _markdown(text: str) -> str:
    """Text that markdown and HTML leave as it is."""
    escaped = html.escape(text, quote=False)
    return "".join(f"\\{character}" if character in "\\`*_[]|#!" else character for character in escaped)


def _in_run() -> bool:
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None
