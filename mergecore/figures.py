"""The front as a picture, for trackers and pages that show no script.

Shapes: P points of the front, R rows that are drawn, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from mergecore.compare_runs import real_front
from mergecore.report import references
from mergecore.run_folder import RunRecord, TaskInfo

SCATTER_TASKS = 3  # with more, every pair would be a panel of its own

_FONT = "DejaVu Sans"  # comes with matplotlib
_INK, _GRID, _FRONT, _VERIFIED, _REFERENCE = "#1b2430", "#e2e5e9", "#6b7a8f", "#0b7a70", "#5b4bb5"
_RUNS = ("#0b7a70", "#c2410c", "#5b4bb5", "#1d6fa5", "#a3781b", "#b0357a", "#4d7c2a", "#6b7a8f")


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
    single models and the base, which would squeeze the front, are not drawn. What is NaN is left out. No state of
    matplotlib's pyplot is read or changed, so that threads can draw at the same time.
    """
    predicted_PT, real_PT = record.front_metrics("predicted"), record.front_metrics("real")
    series = [
        _Series("predicted", predicted_PT, _FRONT, hollow=True),
        _Series("verified", real_PT, _VERIFIED),
    ]
    if len(record.tasks) <= SCATTER_TASKS:
        for kind, marker, label in (("model", "D", "single models"), ("base", "s", "base model")):
            rows = [reference["metrics"] for reference in references(record) if reference["kind"] == kind]
            series.append(_Series(label, np.array(rows).reshape(len(rows), len(record.tasks)), _REFERENCE, marker))
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
        _Series(record.name, front_RT if same else record.front_metrics("real"), _RUNS[index % len(_RUNS)])
        for index, (record, (front_RT, _)) in enumerate(zip(records, fronts, strict=True))
    ]
    return _draw(records[0].tasks, series, title=f"Measured fronts, {fronts[0][1] if same else 'data of the search'}")


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
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(planes)), squeeze=False)[0]
    for axes, dims in zip(panels, planes, strict=False):
        _scatter(axes, tasks, drawn, dims, links=links)
    if not planes:
        _parallel(panels[0], tasks, drawn)
    if not drawn:
        panels[0].text(0.5, 0.5, "no point", transform=panels[0].transAxes, ha="center", color=_INK, family=_FONT)
    handles, _ = panels[0].get_legend_handles_labels()
    if handles:
        labels = [_label(entry.label, 40) for entry in drawn]
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, prop=_font(9)
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        for handle in filter(None, legend.legend_handles):
            handle.set_alpha(1.0)
    figure.suptitle(_label(title, 70), parse_math=False, family=_FONT, size=11, color=_INK)
    picture = BytesIO()
    canvas.print_png(picture, metadata={"Software": None})
    return picture.getvalue()


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
    _style(axes)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(_axis_label(tasks[dims[0]]), parse_math=False, family=_FONT, size=9, color=_INK)
    if len(dims) > 1:
        axes.set_ylabel(_axis_label(tasks[dims[1]]), parse_math=False, family=_FONT, size=9, color=_INK)
    else:
        axes.set_yticks([])


def _parallel(axes: Axes, tasks: list[TaskInfo], series: list[_Series]) -> None:
    """All tasks side by side, each scaled from its worst (0) to its best (1) value among ``series``."""
    T = len(tasks)
    shown_RT = np.concatenate([np.empty((0, T)), *(entry.metrics_RT for entry in series)])
    scale, worst_T, best_T = _scaling(shown_RT, tasks)
    for entry in series:
        rows_RT = scale(entry.metrics_RT[np.isfinite(entry.metrics_RT).any(axis=1)])
        alpha = float(np.clip(25 / len(rows_RT), 0.15, 0.8))
        width = 0.6 if entry.hollow else 1.1
        lines = axes.plot(np.arange(T), rows_RT.T, color=entry.color, linewidth=width, alpha=alpha)
        lines[0].set_label(entry.label)
    _style(axes)
    for t in range(T):
        axes.axvline(t, color=_GRID, linewidth=1, zorder=0)
        for value, height, side in ((worst_T[t], -0.03, "top"), (best_T[t], 1.03, "bottom")):
            text = f"{value:.3g}" if np.isfinite(value) else "–"
            axes.text(t, height, text, ha="center", va=side, size=7, color=_INK, family=_FONT)
    names = [_label(task.name, 16) + ("" if task.maximise else " ↓") for task in tasks]
    axes.set_xticks(range(T), names, parse_math=False, rotation=30, ha="right", family=_FONT, size=8)
    axes.tick_params(axis="x", length=0, pad=12)
    axes.set_yticks([])
    axes.set_xlim(-0.3, T - 0.7)
    axes.set_ylim(-0.1, 1.1)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _scaling(
    shown_RT: np.ndarray, tasks: list[TaskInfo]
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray, np.ndarray]:
    """How to scale rows so that 0 is the worst shown value of each task and 1 the best, with those values [T]."""
    finite_RT = np.isfinite(shown_RT)
    low_T = np.where(finite_RT, shown_RT, np.inf).min(axis=0, initial=np.inf)
    high_T = np.where(finite_RT, shown_RT, -np.inf).max(axis=0, initial=-np.inf)
    maximise_T = np.array([task.maximise for task in tasks])
    worst_T, best_T = np.where(maximise_T, low_T, high_T), np.where(maximise_T, high_T, low_T)
    constant_T = ~(high_T > low_T)

    def scale(metrics_RT: np.ndarray) -> np.ndarray:
        span_T = np.where(constant_T, 1.0, best_T - worst_T)
        middle_RT = np.where(np.isfinite(metrics_RT), 0.5, np.nan)
        return np.where(constant_T, middle_RT, (metrics_RT - np.where(constant_T, 0.0, worst_T)) / span_T)

    return scale, worst_T, best_T


def _style(axes: Axes) -> None:
    axes.tick_params(labelsize=8, colors=_INK, labelfontfamily=_FONT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GRID)


def _axis_label(task: TaskInfo) -> str:
    return f"{_label(task.name, 32)} ({_label(task.metric, 20)}) {'↑' if task.maximise else '↓'}"


def _label(text: str, limit: int) -> str:
    """A name on one line, cut to ``limit``, with a box for what the font cannot draw."""
    line = "".join(letter if _has_glyph(letter) else "□" for letter in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


@cache
def _has_glyph(letter: str) -> bool:
    return get_font(findfont(_font(9))).get_char_index(ord(letter)) != 0


def _font(size: float) -> FontProperties:
    return FontProperties(family=_FONT, size=size)
