"""Pictures of trained routers: their weights by depth, the losses of their training, and the models' dissimilarity.

Each takes what a run's summary says under ``pareto_moe``. Shape suffixes: T tasks, N models, G modules, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure

from mergecore.pareto_moe.analysis import EQUAL
from mergecore.pictures.drawing import FONT, GRID, INK, SERIES, bare, font_of, new_figure, short_line, to_png

KIND_NAMES = {"attention": "attention", "mlp": "MLP"}
_BELOW_ABOVE = LinearSegmentedColormap.from_list("below_above", ["#c2570c", "#f4f4f2", "#1d6fa5"])
_COLUMNS, _TICKS = 3, 7
"""At most so many panels side by side, and numbers of modules below each."""


def routing_figure(found: Mapping[str, Any], title: str) -> bytes:
    """Draw the routing weights as a PNG: a panel for each preference, in it a row a model and a column a module.

    White is lambda, where training starts; blue is above it, orange below. All panels share the scale.
    """
    routing = {name: np.array(weights_GN, dtype=np.float64) for name, weights_GN in found["routing"].items()}
    models, depth, scaling = found["models"], len(found["modules"]), float(found["scaling"])
    columns = 2 if len(routing) == 4 else min(_COLUMNS, len(routing))
    rows = math.ceil(len(routing) / columns)
    width = float(np.clip(0.14 * depth, 2.2, 3.6))
    size = (columns * width + 2.4, rows * (0.6 + 0.2 * len(models)) + 1.3)
    figure = new_figure(size, short_line(f"Routing weights by depth: {title}", int(10 * size[0])))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    reach = max(1e-6, *(float(np.abs(weights_GN - scaling).max()) for weights_GN in routing.values()))
    norm = TwoSlopeNorm(scaling, scaling - reach, scaling + reach)
    for axes, (name, weights_GN) in zip(panels.flat, routing.items(), strict=False):
        image = axes.imshow(weights_GN.T, aspect="auto", cmap=_BELOW_ABOVE, norm=norm, interpolation="nearest")
        axes.set_title(_preference(name), parse_math=False, family=FONT, size=9, color=INK)
        bare(axes)
        axes.tick_params(length=0)
    ticks = range(0, depth, math.ceil(depth / _TICKS))
    for axes in panels.flat:  # each, shared or not: a label is kept from being read as a formula one by one
        axes.set_xticks(ticks, [str(g + 1) for g in ticks])
        axes.set_yticks(range(len(models)), [short_line(name, 18) for name in models], parse_math=False)
    for axes in panels.flat[len(routing) :]:
        axes.set_visible(False)
    for axes in panels.flat[max(0, len(routing) - columns) : len(routing)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("module, by depth", family=FONT, size=8, color=INK)
    bar = figure.colorbar(image, ax=panels, fraction=0.04, pad=0.01)
    bar.set_ticks([scaling - reach, scaling, scaling + reach], labels=_ends(scaling, reach))
    bar.ax.tick_params(labelsize=8, colors=INK, labelfontfamily=FONT, length=0)
    bar.outline.set_visible(False)
    return to_png(figure)


def _ends(scaling: float, reach: float) -> list[str]:
    return [f"{scaling - reach:.2f}", f"{scaling:.2f} (λ)", f"{scaling + reach:.2f}"]


def _preference(name: str) -> str:
    return "equal preference" if name == EQUAL else f"only {short_line(name, 26)}"


def dissimilarity_figure(found: Mapping[str, Any], title: str) -> bytes:
    """Draw how unlike the models' attention and MLP modules are as a PNG: cosine and Euclidean distance by depth."""
    kinds = found["dissimilarity"]["kinds"]
    figure = new_figure((8.4, 3.6), f"{title}: dissimilarity of the models by depth")
    labels = {"cosine": "cosine distance of task vectors", "distance": "distance of weights, root mean square"}
    panels = figure.subplots(1, len(labels))
    for axes, (measure, label) in zip(panels, labels.items(), strict=True):
        for (kind, by_depth), color in zip(kinds.items(), SERIES, strict=False):
            values = np.array(by_depth[measure], dtype=np.float64)
            axes.plot(
                np.array(by_depth["blocks"]) + 1,
                values,
                color=color,
                marker="o",
                markersize=3,
                linewidth=1.2,
                label=KIND_NAMES[kind],
            )
        _axes(axes, "block, by depth", label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, panels[0])
    return to_png(figure)


def training_figure(found: Mapping[str, Any], title: str) -> bytes:
    """Draw the losses of a training by step as a PNG, a colour a task: pale as they were, dark their running mean."""
    training = found["training"]
    steps_S = np.array(training["loss_steps"], dtype=np.float64)
    figure = new_figure((6.8, 4.2), f"{title}: losses while the routers were trained")
    axes = figure.subplots()
    for t, (task, losses) in enumerate(training["losses"].items()):
        color, losses_S = SERIES[t % len(SERIES)], np.array(losses, dtype=np.float64)
        axes.plot(steps_S, losses_S, color=color, linewidth=0.7, alpha=0.3)
        axes.plot(steps_S, running_mean(losses_S), color=color, linewidth=1.6, label=short_line(task, 24))
    _axes(axes, "step", "loss of a batch; dark: running mean")
    _legend(figure, axes)
    return to_png(figure)


def running_mean(values_S: np.ndarray) -> np.ndarray:
    """At each place the mean of the tenth of all values around it, of what there is of it at the ends."""
    half = len(values_S) // 20
    sums = np.concatenate([[0.0], np.cumsum(values_S)])
    places = np.arange(len(values_S))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values_S))
    return (sums[last] - sums[first]) / (last - first)


def _axes(axes: Axes, across: str, up: str) -> None:
    bare(axes)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(across, family=FONT, size=9, color=INK)
    axes.set_ylabel(up, family=FONT, size=9, color=INK)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, prop=font_of(9)
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
