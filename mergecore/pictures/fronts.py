"""Fronts and comparisons as pictures, for trackers and pages that show no script.

Shapes: P points of the front, R rows that are drawn, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from mergecore.comparison.runs import real_front
from mergecore.pages.report import references
from mergecore.pictures.drawing import (
    FONT,
    GREY,
    GRID,
    INK,
    REFERENCE,
    SERIES,
    axis_label,
    bare,
    font_of,
    new_figure,
    parallel_axes,
    scaling,
    short_line,
    to_png,
)
from mergecore.run_record import RunRecord, TaskInfo

if TYPE_CHECKING:
    from mergecore.comparison.methods import Comparison

SCATTER_TASKS = 3  # with more, every pair would be a panel of its own

_VERIFIED = "#0b7a70"


@dataclass(frozen=True)
class _Series:
    """Metrics [R, T] that are drawn alike, in a scatter plot or as paths."""

    label: str
    metrics_RT: np.ndarray
    color: str
    marker: str = "o"
    hollow: bool = False


def front_figure(record: RunRecord) -> bytes:
    """Draw the front as a PNG: one or two tasks as a scatter plot, three as their pairs, more as parallel coordinates.

    Hollow grey points are predictions, filled ones were verified on real merges and are joined to their predictions;
    diamonds are the single models, a square is the base. In parallel coordinates up is better on every task, and the
    single models and the base, which would squeeze the front, are not drawn. What is NaN is left out.
    """
    predicted_PT, real_PT = record.front_metrics("predicted"), record.front_metrics("real")
    series = [
        _Series("predicted", predicted_PT, GREY, hollow=True),
        _Series("verified", real_PT, _VERIFIED),
    ]
    if len(record.tasks) <= SCATTER_TASKS:
        for kind, marker, label in (("model", "D", "single models"), ("base", "s", "base model")):
            rows = [reference["metrics"] for reference in references(record) if reference["kind"] == kind]
            series.append(_Series(label, np.array(rows).reshape(len(rows), len(record.tasks)), REFERENCE, marker))
    return _draw(record.tasks, series, title=record.name, links=(predicted_PT, real_PT))


def comparison_figure(records: Sequence[RunRecord]) -> bytes:
    """Draw the measured fronts of several runs of the same tasks in one PNG, a colour a run.

    The panels are those of `front_figure`. All fronts are held-out metrics when every run has them, otherwise metrics
    on the data of the search.

    Raises:
        InputError: a run has no measured point.
    """
    fronts = [real_front(record) for record in records]
    same = len({label for _, label in fronts}) == 1
    series = [
        _Series(record.name, front_RT if same else record.front_metrics("real"), SERIES[index % len(SERIES)])
        for index, (record, (front_RT, _)) in enumerate(zip(records, fronts, strict=True))
    ]
    return _draw(records[0].tasks, series, title=f"Measured fronts, {fronts[0][1] if same else 'data of the search'}")


def methods_figure(comparison: Comparison, count: int) -> bytes:
    """Draw what the methods of a comparison gave for ``count`` models as a PNG.

    Two tasks are the MAP paper's Figure 5: the front that each search method predicted (hollow, pale) and what it
    measured (filled), every method's choice at equal preference with its name beside it, and dashed lines at the level
    of the single models. One task is a row for each method. More are parallel coordinates, up is better: each method's
    choice at equal preference as a path with its name at the end, the searched fronts pale behind. Held-out data where
    there is any; what lies far off is left out, and named below the picture.
    """
    from mergecore.pictures.method_panels import draw_methods  # torch comes with it, which pictures of runs do without

    return draw_methods(comparison, count)


def _draw(
    tasks: list[TaskInfo],
    series: list[_Series],
    *,
    title: str,
    links: tuple[np.ndarray, np.ndarray] | None = None,
) -> bytes:
    """The panels that fit the number of tasks, as a PNG; ``links`` are two [P, T] to join row by row."""
    T = len(tasks)
    drawn = [entry for entry in series if np.isfinite(entry.metrics_RT).any()]
    planes = [(0,)] if T == 1 else list(combinations(range(T), 2)) if T <= SCATTER_TASKS else []
    size = (4.4 * len(planes), 4.4) if len(planes) > 1 else (max(6.4, 1.1 * T), 4.8)
    figure = new_figure(size, short_line(title, 70))
    panels = figure.subplots(1, max(1, len(planes)), squeeze=False)[0]
    for axes, dims in zip(panels, planes, strict=False):
        _scatter(axes, tasks, drawn, dims, links=links)
    if not planes:
        _parallel(panels[0], tasks, drawn)
    if not drawn:
        panels[0].text(0.5, 0.5, "no point", transform=panels[0].transAxes, ha="center", color=INK, family=FONT)
    handles, _ = panels[0].get_legend_handles_labels()
    if handles:
        labels = [short_line(entry.label, 40) for entry in drawn]
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, prop=font_of(9)
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        for handle in filter(None, legend.legend_handles):
            handle.set_alpha(1.0)
    return to_png(figure)


def _scatter(
    axes: Axes,
    tasks: list[TaskInfo],
    series: list[_Series],
    dims: tuple[int, ...],
    *,
    links: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """One or two tasks as a scatter plot."""

    def place(metrics_RT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return metrics_RT[:, dims[0]], metrics_RT[:, dims[1]] if len(dims) > 1 else np.zeros(len(metrics_RT))

    if links is not None:
        both_P = np.isfinite(links[0]).all(axis=1) & np.isfinite(links[1]).all(axis=1)
        (x0, y0), (x1, y1) = place(links[0][both_P]), place(links[1][both_P])
        axes.plot(np.stack([x0, x1]), np.stack([y0, y1]), color=_VERIFIED, linewidth=0.6, alpha=0.6)
    for entry in series:
        face = "none" if entry.hollow else entry.color
        style: dict[str, Any] = {
            "marker": entry.marker,
            "facecolors": face,
            "edgecolors": entry.color,
            "linewidths": 0.9,
        }
        axes.scatter(*place(entry.metrics_RT), s=24, label=entry.label, zorder=2 if entry.hollow else 3, **style)
    bare(axes)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(axis_label(tasks[dims[0]]), parse_math=False, family=FONT, size=9, color=INK)
    if len(dims) > 1:
        axes.set_ylabel(axis_label(tasks[dims[1]]), parse_math=False, family=FONT, size=9, color=INK)
    else:
        axes.set_yticks([])


def _parallel(axes: Axes, tasks: list[TaskInfo], series: list[_Series]) -> None:
    """All tasks side by side, each scaled from its worst (0) to its best (1) value among ``series``."""
    T = len(tasks)
    shown_RT = np.concatenate([np.empty((0, T)), *(entry.metrics_RT for entry in series)])
    scale, worst_T, best_T = scaling(shown_RT, tasks)
    for entry in series:
        rows_RT = scale(entry.metrics_RT[np.isfinite(entry.metrics_RT).any(axis=1)])
        alpha = float(np.clip(25 / len(rows_RT), 0.15, 0.8))
        width = 0.6 if entry.hollow else 1.1
        lines = axes.plot(np.arange(T), rows_RT.T, color=entry.color, linewidth=width, alpha=alpha)
        lines[0].set_label(entry.label)
    parallel_axes(axes, tasks, worst_T, best_T)
