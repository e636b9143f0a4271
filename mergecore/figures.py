"""The front as a picture, for trackers and pages that show no script.

Shapes: P points of the front, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from mergecore.report import references
from mergecore.run_folder import RunRecord, TaskInfo

_FONT = "DejaVu Sans"  # comes with matplotlib
_INK, _GRID, _FRONT, _VERIFIED, _REFERENCE = "#1b2430", "#e2e5e9", "#6b7a8f", "#0b7a70", "#5b4bb5"


def front_figure(record: RunRecord) -> bytes:
    """Draw the front as a PNG: one or two tasks as a scatter plot, three as their pairs, more as parallel coordinates.

    Hollow grey points are predictions, filled ones were verified on real merges, diamonds are the single models and
    the base. In parallel coordinates up is better on every task. Points with NaN are left out where they have it. No
    state of matplotlib's pyplot is read or changed, so that threads can draw at the same time.
    """
    T = len(record.tasks)
    pairs = list(combinations(range(T), 2)) if 2 <= T <= 3 else []
    size = (4.4 * len(pairs), 4.2) if len(pairs) > 1 else (max(6.4, 1.1 * T), 4.8)
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(pairs)), squeeze=False)[0]
    if T > 3:
        _parallel(panels[0], record)
    else:
        for axes, dims in zip(panels, pairs or [(0,)], strict=True):
            _scatter(axes, record, dims)
    if len(record.front) == 0:
        panels[0].text(0.5, 0.5, "no point", transform=panels[0].transAxes, ha="center", color=_INK, family=_FONT)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, prop={"family": _FONT, "size": 9})
    figure.suptitle(_label(record.name, 70), parse_math=False, family=_FONT, size=11, color=_INK)
    picture = BytesIO()
    canvas.print_png(picture, metadata={"Software": None})
    return picture.getvalue()


def _scatter(axes: Axes, record: RunRecord, dims: tuple[int, ...]) -> None:
    """The front over one or two tasks."""

    def place(metrics_PT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return metrics_PT[:, dims[0]], metrics_PT[:, dims[1]] if len(dims) > 1 else np.zeros(len(metrics_PT))

    predicted_PT, real_PT = record.front_metrics("predicted"), record.front_metrics("real")
    for (x0, y0), (x1, y1) in zip(zip(*place(predicted_PT), strict=True), zip(*place(real_PT), strict=True), strict=True):
        axes.plot([x0, x1], [y0, y1], color=_VERIFIED, linewidth=0.6, alpha=0.6)
    if np.isfinite(predicted_PT).any():
        axes.scatter(*place(predicted_PT), s=20, facecolors="none", edgecolors=_FRONT, linewidths=0.9, label="predicted")
    if np.isfinite(real_PT).any():
        axes.scatter(*place(real_PT), s=24, color=_VERIFIED, label="verified", zorder=3)
    for kind, marker, label in (("model", "D", "single models"), ("base", "s", "base model")):
        rows = [reference["metrics"] for reference in references(record) if reference["kind"] == kind]
        if rows:
            axes.scatter(*place(np.array(rows)), s=28, marker=marker, color=_REFERENCE, label=label, zorder=2)
    _style(axes)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(_axis_label(record.tasks[dims[0]]), parse_math=False, family=_FONT, size=9, color=_INK)
    if len(dims) > 1:
        axes.set_ylabel(_axis_label(record.tasks[dims[1]]), parse_math=False, family=_FONT, size=9, color=_INK)
    else:
        axes.set_yticks([])


def _parallel(axes: Axes, record: RunRecord) -> None:
    """The front across all tasks, each scaled from its worst (0) to its best (1) value on the front."""
    predicted_PT, real_PT = record.front_metrics("predicted"), record.front_metrics("real")
    scale, worst_T, best_T = _scaling(np.concatenate([predicted_PT, real_PT]), record.tasks)
    T = len(record.tasks)
    for metrics_PT, color, width, label in ((predicted_PT, _FRONT, 0.6, "predicted"), (real_PT, _VERIFIED, 1.1, "verified")):
        rows = scale(metrics_PT[np.isfinite(metrics_PT).any(axis=1)])
        alpha = float(np.clip(25 / max(1, len(rows)), 0.15, 0.8))
        for index, row in enumerate(rows):
            axes.plot(range(T), row, color=color, linewidth=width, alpha=alpha, label=None if index else label)
    _style(axes)
    for t in range(T):
        axes.axvline(t, color=_GRID, linewidth=1, zorder=0)
        for value, height, side in ((worst_T[t], -0.03, "top"), (best_T[t], 1.03, "bottom")):
            text = f"{value:.3g}" if np.isfinite(value) else "–"
            axes.text(t, height, text, ha="center", va=side, size=7, color=_INK, family=_FONT)
    names = [_label(task.name, 16) + ("" if task.maximise else " ↓") for task in record.tasks]
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
    return get_font(findfont(FontProperties(family=_FONT))).get_char_index(ord(letter)) != 0
