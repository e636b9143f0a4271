"""Fronts and comparisons as pictures, for trackers and pages that show no script.

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

from mergecore.compare_methods import Comparison, MethodResult
from mergecore.compare_runs import real_front
from mergecore.compare_tables import KINDS, Kind, kind_of_data, measured, of_count, points_of
from mergecore.report import references
from mergecore.run_folder import RunRecord, TaskInfo

SCATTER_TASKS = 3  # with more, every pair would be a panel of its own

_FONT = "DejaVu Sans"  # comes with matplotlib
_INK, _GRID, _FRONT, _VERIFIED, _REFERENCE = "#1b2430", "#e2e5e9", "#6b7a8f", "#0b7a70", "#5b4bb5"
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("D", "s", "^", "v")
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


def methods_figure(comparison: Comparison, count: int) -> bytes:
    """Draw what the methods of a comparison gave for ``count`` models as a PNG.

    Two tasks are the MAP paper's Figure 5: the front that each search method predicted (hollow, pale) and what it
    measured (filled), every method's choice at equal preference with its name beside it, and dashed lines at the level
    of the single models. One task is a row for each method. More are parallel coordinates, up is better: each method's
    choice at equal preference as a path with its name at the end, the searched fronts pale behind. Held-out data where
    there is any; what lies far off is left out, and named below the picture.
    """
    kind, results = kind_of_data(comparison), of_count(comparison, count)
    tasks = [comparison.tasks[t] for t in results[0].tasks] if results else []
    T = len(tasks)
    size = (max(9.0, 1.2 * T + 2.4), 6.4) if T != 1 else (8.0, 1.6 + 0.3 * len(results))
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    _style(axes)
    own_T = comparison.own.get((count, kind), np.full(T, np.nan))
    if not results:
        axes.text(0.5, 0.5, "no point", transform=axes.transAxes, ha="center", color=_INK, family=_FONT)
    elif T == 1:
        _method_rows(axes, tasks[0], _entrants(results, kind), own_T[0])
    elif T == 2:
        _method_scatter(figure, axes, tasks, _entrants(results, kind), own_T)
    else:
        _method_paths(figure, axes, tasks, _entrants(results, kind), own_T)
    title = f"{_label(comparison.name, 50)}: {count} models, {KINDS[kind]}"
    figure.suptitle(title, parse_math=False, family=_FONT, size=11, color=_INK)
    picture = BytesIO()
    canvas.print_png(picture, metadata={"Software": None})
    return picture.getvalue()


@dataclass(frozen=True)
class _Entrant:
    """One method of a comparison as it is drawn: its choice at equal preference, all it measured, its front."""

    name: str
    equal_T: np.ndarray
    points_PT: np.ndarray
    predicted_PT: np.ndarray
    color: str
    marker: str
    dash: str
    searched: bool


def _entrants(results: list[MethodResult], kind: Kind) -> list[_Entrant]:
    """Colours come round with another dash and another marker; what merges nothing is a star."""
    found, turn = [], 0
    for result in results:
        assert result.chosen is not None
        searched, again = result.front is not None, turn // len(_RUNS) % len(_DASHES)
        look = (_RUNS[turn % len(_RUNS)], "o" if searched else _MARKERS[again], _DASHES[again])
        color, marker, dash = (_REFERENCE, "*", "-.") if result.bound else look
        turn += not result.bound
        found.append(
            _Entrant(
                name=_label(result.method, 26),
                equal_T=measured(result.chosen, kind)[0],
                points_PT=points_of(result, kind),
                predicted_PT=np.empty((0, len(result.tasks))) if result.front is None else result.front.predicted_RT,
                color=color,
                marker=marker,
                dash=dash,
                searched=searched,
            )
        )
    return found


def _method_rows(axes: Axes, task: TaskInfo, entrants: list[_Entrant], own: float) -> None:
    """One task: a row for each method, its choice large and all else that it measured small."""
    for row, entrant in enumerate(reversed(entrants)):
        axes.scatter(entrant.points_PT[:, 0], [row] * len(entrant.points_PT), s=12, color=entrant.color, alpha=0.5)
        axes.scatter(entrant.equal_T, [row], s=55, color=entrant.color, marker=entrant.marker, zorder=3)
    if np.isfinite(own):
        axes.axvline(own, color=_REFERENCE, linestyle="--", linewidth=1, zorder=1)
    names = [entrant.name for entrant in reversed(entrants)]
    axes.set_yticks(range(len(names)), names, parse_math=False, family=_FONT, size=8)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(color=_GRID, linewidth=0.7, axis="x")
    axes.set_xlabel(_axis_label(task), parse_math=False, family=_FONT, size=9, color=_INK)


def _method_scatter(
    figure: Figure, axes: Axes, tasks: list[TaskInfo], entrants: list[_Entrant], own_T: np.ndarray
) -> None:
    """Two tasks: fronts as predicted and as measured, and each method's choice with its name beside it."""
    choices_RT = np.array([entrant.equal_T for entrant in entrants])
    for entrant in entrants:
        style: dict[str, Any] = {"s": 14, "linewidths": 0.7, "edgecolors": entrant.color}
        axes.scatter(*entrant.predicted_PT.T, facecolors="none", alpha=0.35, zorder=2, **style)
        if entrant.searched:
            axes.scatter(*entrant.points_PT.T, facecolors=entrant.color, alpha=0.85, zorder=3, **style)
        size = 110 if entrant.marker == "*" else 55
        axes.scatter(*entrant.equal_T, s=size, color=entrant.color, marker=entrant.marker, edgecolors="white", zorder=4)
    fronts = [rows for e in entrants if e.searched for rows in (e.points_PT, e.predicted_PT)]
    lows, highs = [], []
    for t in range(2):
        front = np.concatenate([np.empty(0), *(rows[:, t] for rows in fronts)])
        shown = np.concatenate([_near(np.append(choices_RT[:, t], own_T[t])), front[np.isfinite(front)]])
        low, high = (shown.min(), shown.max()) if len(shown) else (0.0, 1.0)
        pad = 0.06 * ((high - low) or abs(high) * 0.02 or 0.02)
        lows.append(low - pad)
        highs.append(high + pad)
    axes.set_xlim(lows[0], highs[0])
    axes.set_ylim(lows[1], highs[1])
    for t, line in ((0, axes.axvline), (1, axes.axhline)):
        if lows[t] <= own_T[t] <= highs[t]:
            line(own_T[t], color=_REFERENCE, linestyle="--", linewidth=1, zorder=1)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(_axis_label(tasks[0]), parse_math=False, family=_FONT, size=9, color=_INK)
    axes.set_ylabel(_axis_label(tasks[1]), parse_math=False, family=_FONT, size=9, color=_INK)
    inside = [bool((e.equal_T >= lows).all() and (e.equal_T <= highs).all()) for e in entrants]
    said = [
        f"{e.name} ({e.equal_T[0]:.3g}, {e.equal_T[1]:.3g})"
        for e, seen in zip(entrants, inside, strict=True)
        if not seen
    ]
    searched = any(entrant.searched for entrant in entrants)
    _note(
        figure,
        ["Large: the choice at equal preference."]
        + ["Hollow: predicted fronts, filled: measured."] * searched
        + ["Dashed: the single models."] * bool(np.isfinite(own_T).any()),
        said,
    )
    _name_points(figure, axes, [entrant for entrant, seen in zip(entrants, inside, strict=True) if seen], entrants)


def _method_paths(
    figure: Figure, axes: Axes, tasks: list[TaskInfo], entrants: list[_Entrant], own_T: np.ndarray
) -> None:
    """Three tasks or more side by side, each scaled from its worst to its best choice; names at the ends of paths."""
    T = len(tasks)
    choices_RT = np.array([*(entrant.equal_T for entrant in entrants), own_T])
    near = [np.isin(choices_RT[:, t], _near(choices_RT[:, t])) for t in range(T)]
    _parallel_axes(axes, tasks, *(frame := _scaling(np.where(np.stack(near, axis=1), choices_RT, np.nan), tasks))[1:])
    scale, places = frame[0], np.arange(T)
    for entrant in entrants:
        rows_PT = entrant.predicted_PT[np.isfinite(entrant.predicted_PT).all(axis=1)]
        if entrant.searched:
            behind_PT = scale(rows_PT if len(rows_PT) else entrant.points_PT)
            alpha = float(np.clip(8 / max(1, len(behind_PT)), 0.05, 0.3))
            axes.plot(places, behind_PT.T, color=entrant.color, linewidth=0.5, alpha=alpha, zorder=1)
        width = 2.2 if entrant.searched else 1.2
        style: dict[str, Any] = {"color": entrant.color, "marker": entrant.marker, "markersize": 4, "zorder": 3}
        axes.plot(places, scale(entrant.equal_T[None])[0], linewidth=width, linestyle=entrant.dash, **style)
    axes.plot(places, scale(own_T[None])[0], color=_REFERENCE, linestyle="--", linewidth=1.6, zorder=2)
    ends = [(float(scale(entrant.equal_T[None])[0, -1]), entrant) for entrant in entrants]
    ends = [(float(np.clip(end, -0.07, 1.07)), entrant) for end, entrant in ends if np.isfinite(end)]
    heights = _spread(np.array([end for end, _ in ends]), gap=0.034, low=-0.07, high=1.07)
    for (end, entrant), height in zip(ends, heights, strict=True):
        axes.plot([T - 1, T - 0.85], [end, height], color=entrant.color, linewidth=0.7, clip_on=False)
        axes.text(
            T - 0.83, height, entrant.name, va="center", size=8, color=entrant.color, family=_FONT, parse_math=False
        )
    notes = ["Paths: the choice at equal preference."] + ["Pale: searched fronts."] * any(e.searched for e in entrants)
    _note(figure, notes + ["Dashed: the single models."] * bool(np.isfinite(own_T).any()), [])


def _note(figure: Figure, sentences: list[str], far_off: list[str]) -> None:
    """How to read the picture, and what lies outside it."""
    outside = [f"Far off: {', '.join(far_off)}."] if far_off else []
    text = "\n".join([" ".join(sentences), *outside])
    figure.supxlabel(text, parse_math=False, wrap=True, family=_FONT, size=8, color=_FRONT)


def _near(values: np.ndarray) -> np.ndarray:
    """The values within three times the middle half's range of it (Tukey's outer fences)."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return finite
    low, high = np.quantile(finite, [0.25, 0.75])
    return finite[(finite >= low - 3 * (high - low)) & (finite <= high + 3 * (high - low))]


def _spread(values: np.ndarray, *, gap: float, low: float, high: float) -> np.ndarray:
    """Values moved, by one pass up and one down, until neighbours are ``gap`` apart or fill the range evenly."""
    order, moved = np.argsort(values, kind="stable"), values.copy()
    gap = min(gap, (high - low) / max(1, len(values) - 1))
    floor, ceiling = low, high
    for index in order:
        moved[index] = max(moved[index], floor)
        floor = moved[index] + gap
    for index in order[::-1]:
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def _name_points(figure: Figure, axes: Axes, entrants: list[_Entrant], drawn: list[_Entrant]) -> None:
    """Write each name beside its point: near it, and off other names and points where there is room."""
    figure.draw_without_rendering()  # the layout decides where points are
    figure.set_layout_engine("none")
    box, pixel = axes.get_window_extent(), figure.dpi / 72
    marks = [rows for e in drawn for rows in ((e.points_PT, e.equal_T[None]) if e.searched else (e.equal_T[None],))]
    marks_RT = np.concatenate(marks)
    marks_R4 = _boxes(axes.transData.transform(marks_RT[np.isfinite(marks_RT).all(axis=1)]), 4 * pixel, 4 * pixel)
    taken = np.empty((0, 4))
    for entrant in entrants:
        place = axes.transData.transform(entrant.equal_T)
        half = np.array([0.5 * _width(entrant.name, 8) * pixel, 5 * pixel])
        angles = np.arange(12) * np.pi / 6
        reaches = np.repeat(np.array([0, 8, 18, 30, 46, 66, 90]) * pixel, len(angles))
        round_R2 = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        shifts_R2 = np.tile(round_R2, (7, 1)) * (half + 6 * pixel + reaches[:, None])
        boxes_R4 = _boxes(place + shifts_R2, *half)
        outside_R = np.maximum(0, [[box.x0, box.y0]] - boxes_R4[:, :2]).sum(axis=1)
        outside_R += np.maximum(0, boxes_R4[:, 2:] - [[box.x1, box.y1]]).sum(axis=1)
        costs_R = reaches + 20 * outside_R + _overlaps(boxes_R4, marks_R4) + 4 * _overlaps(boxes_R4, taken)
        best = int(costs_R.argmin())
        taken = np.concatenate([taken, boxes_R4[best : best + 1]])
        axes.annotate(
            entrant.name,
            entrant.equal_T,
            shifts_R2[best] / pixel,
            textcoords="offset points",
            ha="center",
            va="center",
            parse_math=False,
            fontproperties=_font(8),
            color=entrant.color,
            arrowprops={"arrowstyle": "-", "color": entrant.color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
            zorder=5,
        )


def _boxes(middles_R2: np.ndarray, width: float, height: float) -> np.ndarray:
    """[R, 4] of x0, y0, x1, y1 from half widths and heights."""
    half = np.array([width, height])
    return np.hstack([middles_R2 - half, middles_R2 + half])


def _overlaps(boxes_R4: np.ndarray, others_S4: np.ndarray) -> np.ndarray:
    """Area that each box shares with the others, [R]."""
    low = np.maximum(boxes_R4[:, None, :2], others_S4[None, :, :2])
    high = np.minimum(boxes_R4[:, None, 2:], others_S4[None, :, 2:])
    return np.maximum(0, high - low).prod(axis=2).sum(axis=1)


def _width(text: str, size: float) -> float:
    """Of a text in points."""
    font = get_font(findfont(_font(size)))
    font.set_size(size, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64


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
    _parallel_axes(axes, tasks, worst_T, best_T)


def _parallel_axes(axes: Axes, tasks: list[TaskInfo], worst_T: np.ndarray, best_T: np.ndarray) -> None:
    """An upright line for each task with its worst and best shown value at its ends."""
    T = len(tasks)
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
