"""How every picture looks: font, colours, names on one line, axes side by side.

Shapes: R rows that are drawn, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from mergecore.run_record import TaskInfo

FONT = "DejaVu Sans"  # comes with matplotlib
INK, GRID, GREY, REFERENCE = "#1b2430", "#e2e5e9", "#6b7a8f", "#5b4bb5"
SERIES = ("#0b7a70", "#c2410c", "#5b4bb5", "#1d6fa5", "#a3781b", "#b0357a", "#4d7c2a", "#6b7a8f")


def new_figure(size: tuple[float, float], title: str) -> Figure:
    """An empty picture of so many inches; without pyplot and its state, so that threads can draw at the same time."""
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(short_line(title, 90), parse_math=False, family=FONT, size=11, color=INK)
    return figure


def to_png(figure: Figure) -> bytes:
    """The same bytes for the same picture."""
    picture = BytesIO()
    figure.canvas.print_png(picture, metadata={"Software": None})  # type: ignore[attr-defined]
    return picture.getvalue()


def parallel_axes(axes: Axes, tasks: list[TaskInfo], worst_T: np.ndarray, best_T: np.ndarray) -> None:
    """An upright line for each task with its worst and best shown value at its ends."""
    T = len(tasks)
    bare(axes)
    for t in range(T):
        axes.axvline(t, color=GRID, linewidth=1, zorder=0)
        for value, height, side in ((worst_T[t], -0.03, "top"), (best_T[t], 1.03, "bottom")):
            text = f"{value:.3g}" if np.isfinite(value) else "–"
            axes.text(t, height, text, ha="center", va=side, size=7, color=INK, family=FONT)
    names = [short_line(task.name, 16) + ("" if task.maximise else " ↓") for task in tasks]
    axes.set_xticks(range(T), names, parse_math=False, rotation=30, ha="right", family=FONT, size=8)
    axes.tick_params(axis="x", length=0, pad=12)
    axes.set_yticks([])
    axes.set_xlim(-0.3, T - 0.7)
    axes.set_ylim(-0.1, 1.1)
    for spine in axes.spines.values():
        spine.set_visible(False)


def scaling(
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


def near(values: np.ndarray) -> np.ndarray:
    """The values within 1.5 times the middle half's range of it (Tukey's fences)."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return finite
    low, high = np.quantile(finite, [0.25, 0.75])
    return finite[(finite >= low - 1.5 * (high - low)) & (finite <= high + 1.5 * (high - low))]


def text_width(text: str, size: float) -> float:
    """Of a text in points."""
    font = get_font(findfont(font_of(size)))
    font.set_size(size, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64


def bare(axes: Axes) -> None:
    """Axes with no frame but two pale lines."""
    axes.tick_params(labelsize=8, colors=INK, labelfontfamily=FONT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def axis_label(task: TaskInfo) -> str:
    """A task, its metric and which way is better."""
    return f"{short_line(task.name, 32)} ({short_line(task.metric, 20)}) {'↑' if task.maximise else '↓'}"


def short_line(text: str, limit: int) -> str:
    """A name on one line, cut to ``limit``, with a box for what the font cannot draw."""
    line = "".join(letter if _has_glyph(letter) else "□" for letter in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


@cache
def _has_glyph(letter: str) -> bool:
    return get_font(findfont(font_of(9))).get_char_index(ord(letter)) != 0


def font_of(size: float) -> FontProperties:
    """The font at so many points."""
    return FontProperties(family=FONT, size=size)
