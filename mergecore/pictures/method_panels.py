"""Pictures of a comparison of methods, a panel each for one task, two tasks and more.

Shapes: P points of a front, R choices, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from mergecore.comparison.methods import Comparison, MethodResult
from mergecore.comparison.tables import KINDS, Kind, kind_of_data, measured, of_count, points_of
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
    near,
    new_figure,
    parallel_axes,
    scaling,
    short_line,
    text_width,
    to_png,
)
from mergecore.run_record import TaskInfo

_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("D", "s", "^", "v")


def draw_methods(comparison: Comparison, count: int) -> bytes:
    """What `mergecore.pictures.fronts.methods_figure` draws."""
    kind, results = kind_of_data(comparison), of_count(comparison, count)
    tasks = [comparison.tasks[t] for t in results[0].tasks] if results else []
    entrants, T = _entrants(comparison, results, kind), len(tasks)
    own_T = comparison.own.get((count, kind), np.full(T, np.nan))
    size = (max(9.0, 1.2 * T + 2.4), 6.4) if T != 1 else (8.0, 1.6 + 0.3 * len(results))
    figure = new_figure(size, f"{short_line(comparison.name, 50)}: {count} models, {KINDS[kind]}")
    axes = figure.subplots()
    bare(axes)
    if not results:
        axes.text(0.5, 0.5, "no point", transform=axes.transAxes, ha="center", color=INK, family=FONT)
    elif T == 1:
        _rows_panel(axes, tasks[0], entrants, own_T[0])
    elif T == 2:
        _scatter_panel(figure, axes, tasks, entrants, own_T)
    else:
        _paths_panel(figure, axes, tasks, entrants, own_T)
    return to_png(figure)


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


def _entrants(comparison: Comparison, results: list[MethodResult], kind: Kind) -> list[_Entrant]:
    """Each method looks alike for all numbers of models; colours come round with another dash and another marker."""
    merging = list(dict.fromkeys(result.method for result in comparison.results if not result.bound))
    found = []
    for result in results:
        assert result.chosen is not None
        color, marker, dash = REFERENCE, "*", "-."
        searched = result.front is not None
        if not result.bound:
            again, turn = divmod(merging.index(result.method), len(SERIES))
            color, dash = SERIES[turn], _DASHES[again % len(_DASHES)]
            marker = "o" if searched else _MARKERS[again % len(_MARKERS)]
        found.append(
            _Entrant(
                name=short_line(result.method, 26),
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


def _rows_panel(axes: Axes, task: TaskInfo, entrants: list[_Entrant], own: float) -> None:
    """One task: a row for each method, its choice large and all else that it measured small."""
    for row, entrant in enumerate(reversed(entrants)):
        axes.scatter(entrant.points_PT[:, 0], [row] * len(entrant.points_PT), s=12, color=entrant.color, alpha=0.5)
        axes.scatter(entrant.equal_T, [row], s=55, color=entrant.color, marker=entrant.marker, zorder=3)
    if np.isfinite(own):
        axes.axvline(own, color=REFERENCE, linestyle="--", linewidth=1, zorder=1)
    names = [entrant.name for entrant in reversed(entrants)]
    axes.set_yticks(range(len(names)), names, parse_math=False, family=FONT, size=8)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(color=GRID, linewidth=0.7, axis="x")
    axes.set_xlabel(axis_label(task), parse_math=False, family=FONT, size=9, color=INK)


def _scatter_panel(
    figure: Figure, axes: Axes, tasks: list[TaskInfo], entrants: list[_Entrant], own_T: np.ndarray
) -> None:
    """Two tasks: fronts as predicted and as measured, and each method's choice with its name beside it."""
    choices_RT = np.array([entrant.equal_T for entrant in entrants])
    for entrant in entrants:
        style: dict[str, Any] = {"s": 14, "linewidths": 0.7, "edgecolors": entrant.color}
        (x, y), (measured_x, measured_y) = entrant.predicted_PT.T, entrant.points_PT.T
        axes.scatter(x, y, facecolors="none", alpha=0.35, zorder=2, **style)
        if entrant.searched:
            axes.scatter(measured_x, measured_y, facecolors=entrant.color, alpha=0.85, zorder=3, **style)
        large: dict[str, Any] = {"s": 110 if entrant.marker == "*" else 55, "edgecolors": "white", "zorder": 4}
        axes.scatter(entrant.equal_T[0], entrant.equal_T[1], color=entrant.color, marker=entrant.marker, **large)
    fronts = [rows for e in entrants if e.searched for rows in (e.points_PT, e.predicted_PT)]
    lows, highs = [], []
    for t in range(2):
        front = np.concatenate([np.empty(0), *(rows[:, t] for rows in fronts)])
        shown = np.concatenate([near(choices_RT[:, t]), own_T[t : t + 1], front])
        shown = shown[np.isfinite(shown)]
        low, high = (shown.min(), shown.max()) if len(shown) else (0.0, 1.0)
        pad = 0.06 * ((high - low) or abs(high) * 0.02 or 0.02)
        lows.append(low - pad)
        highs.append(high + pad)
    axes.set_xlim(lows[0], highs[0])
    axes.set_ylim(lows[1], highs[1])
    for t, line in ((0, axes.axvline), (1, axes.axhline)):
        if lows[t] <= own_T[t] <= highs[t]:
            line(own_T[t], color=REFERENCE, linestyle="--", linewidth=1, zorder=1)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(axis_label(tasks[0]), parse_math=False, family=FONT, size=9, color=INK)
    axes.set_ylabel(axis_label(tasks[1]), parse_math=False, family=FONT, size=9, color=INK)
    inside = [bool((e.equal_T >= lows).all() and (e.equal_T <= highs).all()) for e in entrants]
    outside = [e for e, seen in zip(entrants, inside, strict=True) if not seen and np.isfinite(e.equal_T).all()]
    searched = any(entrant.searched for entrant in entrants)
    _note(
        figure,
        ["Large: the choice at equal preference."]
        + ["Filled: fronts as measured, hollow: as predicted for the data of the search."] * searched
        + ["Dashed: the single models."] * bool(np.isfinite(own_T).any()),
        [f"{e.name} ({e.equal_T[0]:.3g}, {e.equal_T[1]:.3g})" for e in outside],
    )
    _name_points(figure, axes, [entrant for entrant, seen in zip(entrants, inside, strict=True) if seen], entrants)


def _paths_panel(
    figure: Figure, axes: Axes, tasks: list[TaskInfo], entrants: list[_Entrant], own_T: np.ndarray
) -> None:
    """Three tasks or more side by side, each scaled from its worst to its best choice; names at the ends of paths."""
    T = len(tasks)
    choices_RT = np.array([entrant.equal_T for entrant in entrants])
    near_RT = np.stack([np.isin(column, near(column)) for column in choices_RT.T], axis=1)
    scale, worst_T, best_T = scaling(np.vstack([np.where(near_RT, choices_RT, np.nan), own_T]), tasks)
    parallel_axes(axes, tasks, worst_T, best_T)
    places = np.arange(T)
    for entrant in entrants:
        rows_PT = entrant.predicted_PT[np.isfinite(entrant.predicted_PT).all(axis=1)]
        if entrant.searched:
            behind_PT = scale(rows_PT if len(rows_PT) else entrant.points_PT)
            alpha = float(np.clip(8 / max(1, len(behind_PT)), 0.05, 0.3))
            axes.plot(places, behind_PT.T, color=entrant.color, linewidth=0.5, alpha=alpha, zorder=1)
        width = 2.2 if entrant.searched else 1.2
        style: dict[str, Any] = {"color": entrant.color, "marker": entrant.marker, "markersize": 4, "zorder": 3}
        axes.plot(places, scale(entrant.equal_T[None])[0], linewidth=width, linestyle=entrant.dash, **style)
    axes.plot(places, scale(own_T[None])[0], color=REFERENCE, linestyle="--", linewidth=1.6, zorder=2)
    ends = [(float(scale(entrant.equal_T[None])[0, -1]), entrant) for entrant in entrants]
    ends = [(float(np.clip(end, -0.07, 1.07)), entrant) for end, entrant in ends if np.isfinite(end)]
    heights = _spread(np.array([end for end, _ in ends]), gap=0.034, low=-0.07, high=1.0)
    for (end, entrant), height in zip(ends, heights, strict=True):
        axes.plot([T - 1, T - 0.85], [end, height], color=entrant.color, linewidth=0.7, clip_on=False)
        axes.text(
            T - 0.83, height, entrant.name, va="center", size=8, color=entrant.color, family=FONT, parse_math=False
        )
    notes = ["Paths: the choice at equal preference."] + ["Pale: searched fronts."] * any(e.searched for e in entrants)
    outside_RT = np.isfinite(choices_RT) & ~near_RT
    far_off = [e.name for e, outside_T in zip(entrants, outside_RT, strict=True) if outside_T.all()]
    _note(figure, notes + ["Dashed: the single models."] * bool(np.isfinite(own_T).any()), far_off)


def _note(figure: Figure, sentences: list[str], far_off: list[str]) -> None:
    """How to read the picture, and what lies outside it."""
    outside = [f"Far off: {', '.join(far_off)}."] if far_off else []
    text = "\n".join([" ".join(sentences), *outside])
    figure.supxlabel(text, parse_math=False, wrap=True, family=FONT, size=8, color=GREY)


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
    fronts = [rows for entrant in drawn if entrant.searched for rows in (entrant.points_PT, entrant.predicted_PT)]
    marks_RT = np.concatenate([*fronts, *(entrant.equal_T[None] for entrant in drawn)])
    marks_R4 = _boxes(axes.transData.transform(marks_RT[np.isfinite(marks_RT).all(axis=1)]), 4 * pixel, 4 * pixel)
    taken = np.empty((0, 4))
    for entrant in entrants:
        place = axes.transData.transform(entrant.equal_T)
        half = np.array([0.5 * text_width(entrant.name, 8) * pixel, 5 * pixel])
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
            tuple(entrant.equal_T),
            tuple(shifts_R2[best] / pixel),
            textcoords="offset points",
            ha="center",
            va="center",
            parse_math=False,
            fontproperties=font_of(8),
            color=entrant.color,
            arrowprops={"arrowstyle": "-", "color": entrant.color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
            zorder=5,
            path_effects=[withStroke(linewidth=2, foreground="white")],
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
