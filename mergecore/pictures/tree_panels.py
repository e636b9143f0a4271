"""Nested MAP's merges as pictures: the whole tree with the fronts along it, and one merge alone.

Shapes: K samples, P points of a front.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mergecore.pictures.drawing import FONT, GREY, GRID, INK, SERIES, bare, new_figure, short_line, to_png
from mergecore.pictures.tree import Node, side_names, window, without_brackets

_FRONT, _CHOICE, _CLOUD = SERIES[0], SERIES[1], "#b9c1cb"
_LEAF, _LEVEL, _FOOT, _HEAD = 1.45, 1.95, 1.2, 0.75
"""Inches from leaf to leaf and from level to level, below the leaves' lines, and above the highest panel."""
_WIDTH, _HEIGHT = 1.4, 1.05
"""Inches of a panel."""
_TURN, _PORT = 0.42, 0.2
"""Inches below a panel where the lines of its sides turn to it, and where they end."""


_CAPTION = (
    "Panels: metric of the left side to the right, of the right side upwards; green the front, grey samples, orange "
    "what was chosen. At the lines: coefficients of the sides; below the models: coefficients in the merge of all."
)


def tree_figure(nodes: Sequence[Node], *, title: str) -> bytes:
    """Draw a tree as a PNG: in each merge its front, its samples in grey, and the chosen point, larger."""
    leaves = sum(node.merge is None for node in nodes)
    top = max(node.level for node in nodes)
    width, height = max(leaves * _LEAF + 0.4, 4.4), top * _LEVEL + _FOOT + _HEAD
    figure = new_figure((width, height), short_line(title, int(10 * width)))
    figure.set_layout_engine("none")
    sheet = figure.add_axes((0, 0, 1, 1), zorder=0)
    sheet.set(xlim=(0, width), ylim=(0, height))
    sheet.axis("off")
    margin = (width - (leaves - 1) * _LEAF) / 2

    def place(node: Node) -> tuple[float, float]:
        """Inches of the middle of a node's lower edge; of a leaf's line."""
        return margin + node.x * _LEAF, _FOOT if node.merge is None else _FOOT + node.level * _LEVEL - _HEIGHT - 0.2

    for node in nodes:
        x, y = place(node)
        if node.merge is None:
            _leaf(sheet, node, x, y)
            continue
        for side, sign, coefficient in zip(node.sides, (-1, 1), node.coefficients, strict=True):
            below, y_below = place(nodes[side])
            start = y_below + (0.0 if nodes[side].merge is None else _HEIGHT + 0.22)
            port, turn = x + sign * _WIDTH / 4, y - _TURN
            sheet.plot([below, below, port, port], [start, turn, turn, y - _PORT], color=GREY, linewidth=1)
            align = "right" if sign < 0 else "left"
            _text(sheet, below + sign * 0.05, turn - 0.05, f"{coefficient:.2f}", ha=align, va="top", size=8)
        panel = figure.add_axes(((x - _WIDTH / 2) / width, y / height, _WIDTH / width, _HEIGHT / height))
        _panel(panel, node.merge, size=7.0)
        panel.set_title(short_line(node.name, 27), family=FONT, size=7, color=INK, parse_math=False, pad=3)
    _text(
        sheet, width / 2, 0.1, textwrap.fill(_CAPTION, int(13.5 * width)), ha="center", va="bottom", size=7, color=GREY
    )
    return to_png(figure)


def pair_figure(merge: Mapping[str, Any]) -> bytes:
    """Draw one merge as a PNG: its front, its samples, the chosen point."""
    figure = new_figure((5.2, 4.6), short_line(without_brackets(merge["name"]), 60))
    axes = figure.subplots()
    _panel(axes, merge, size=22.0)
    bare(axes)
    arrow = {"metric": "↑", "loss": "↓", "spread": "↑"}[merge["unit"]]
    style: dict[str, Any] = {"parse_math": False, "family": FONT, "size": 9, "color": INK}
    across, up = (f"{short_line(side, 44)} {arrow}" for side in side_names(merge))
    axes.set_xlabel(across, **style)
    axes.set_ylabel(up, **style)
    return to_png(figure)


def _panel(axes: Axes, merge: Mapping[str, Any], *, size: float) -> None:
    """Points of ``size`` square points, and the ends of both scales."""
    front_P2 = np.array(merge["front"]["groups"], dtype=np.float64)
    samples_K2 = np.array(merge["samples"]["groups"], dtype=np.float64)
    chosen_2 = front_P2[merge["chosen"]]
    axes.scatter(samples_K2[:, 0], samples_K2[:, 1], s=size, color=_CLOUD, linewidths=0, zorder=2)
    axes.scatter(front_P2[:, 0], front_P2[:, 1], s=size, color=_FRONT, linewidths=0, zorder=3)
    axes.scatter(chosen_2[0], chosen_2[1], s=5 * size, color=_CHOICE, edgecolors="white", linewidths=0.7, zorder=4)
    (x0, x1), (y0, y1) = window(merge)
    axes.set(xlim=(x0, x1), ylim=(y0, y1))
    axes.set_facecolor("#fafafa")
    axes.tick_params(length=0, labelsize=6, colors=INK, labelfontfamily=FONT, pad=1.5)
    for axis, (low, high) in ((axes.xaxis, (x0, x1)), (axes.yaxis, (y0, y1))):
        ends = [low + 0.12 * (high - low), high - 0.12 * (high - low)]
        axis.set_ticks(ends, [_number(value, merge["unit"], high - low) for value in ends])
    for spine in axes.spines.values():
        spine.set_color(GRID)


def _leaf(sheet: Axes, node: Node, x: float, y: float) -> None:
    lines = textwrap.wrap(short_line(node.name, 200), 17)
    if len(lines) > 2:
        lines = [lines[0], lines[1][:16] + "…"]
    _text(sheet, x, y - 0.05, "\n".join(lines), ha="center", va="top", size=8)
    value = f"{node.coefficients[0]:.3f}"
    _text(sheet, x, y - 0.14 * len(lines) - 0.1, value, ha="center", va="top", size=8, color=_CHOICE)


def _text(sheet: Axes, x: float, y: float, text: str, *, size: float, color: str = INK, **align: Any) -> None:
    sheet.text(x, y, text, parse_math=False, family=FONT, size=size, color=color, linespacing=1.15, **align)


def _number(value: float, unit: str, span: float) -> str:
    digits = int(np.clip(np.ceil(-np.log10(span)) + 1, 0, 4))
    return f"{-value if unit == 'loss' else value:.{digits}f}"
