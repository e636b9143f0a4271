"""The tree of nested MAP's merges: where its nodes are, and what a page draws it from (MAP, Figures 3b and 10).

Leaves are models, at the bottom; a node is a merge of two with the front of their metrics; the root is on top.

Shapes: K samples, P points of a front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Node:
    """A model or a merge.

    Attributes:
        name: of it, without brackets around the whole.
        x: place from left to right; leaves are at whole numbers.
        level: 0 for leaves.
        sides: the two nodes that were merged, left and right, by their place in the list; empty for a leaf.
        coefficients: of the sides; of a leaf its own in the merge of all.
        merge: its record (`mergecore.search.pairs.record`); None for a leaf.
    """

    name: str
    x: float
    level: int
    sides: tuple[int, ...]
    coefficients: tuple[float, ...]
    merge: Mapping[str, Any] | None = None


def merge_tree(summary: Mapping[str, Any]) -> list[Node]:
    """The tree in a run's summary, leaves from left to right, then merges in their order; empty for other searches."""
    merges = summary.get("rounds") or []
    if summary.get("method") != "nested_map" or not merges:
        return []
    by_models = {frozenset(_models(merge)): merge for merge in merges}

    def leaves(models: Sequence[str]) -> list[str]:
        merge = by_models.get(frozenset(models))
        return list(models) if merge is None else [leaf for side in merge["sides"] for leaf in leaves(side["models"])]

    order, flat = leaves(_models(merges[-1])), merges[-1]["flat"]
    nodes = [Node(model, float(x), 0, (), (flat[model],)) for x, model in enumerate(order)]
    places = {frozenset([model]): place for place, model in enumerate(order)}
    for merge in merges:
        first, second = (places[frozenset(side["models"])] for side in merge["sides"])
        x, level = (nodes[first].x + nodes[second].x) / 2, max(nodes[first].level, nodes[second].level) + 1
        places[frozenset(_models(merge))] = len(nodes)
        nodes.append(
            Node(without_brackets(merge["name"]), x, level, (first, second), tuple(merge["coefficients"]), merge)
        )
    return nodes


def tree_data(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """What a page draws the tree from, in JSON's types."""
    return [
        {
            "name": node.name,
            "x": node.x,
            "level": node.level,
            "sides": list(node.sides),
            "coefficients": list(node.coefficients),
            "merge": None
            if node.merge is None
            else {
                **{key: node.merge[key] for key in ("chosen", "evaluations", "unit")},
                "front": node.merge["front"]["groups"],
                "samples": node.merge["samples"]["groups"],
                "window": window(node.merge).tolist(),
                "r2": {task: fit["held_out_r2"] for task, fit in node.merge["surrogates"].items()},
            },
        }
        for node in nodes
    ]


def window(merge: Mapping[str, Any]) -> np.ndarray:
    """What a panel shows, [2, 2]: for each side the lowest and highest metric.

    The front, with air around it; at least a tenth of what the samples span, so that a short front looks short.
    """
    front_P2 = np.array(merge["front"]["groups"], dtype=np.float64)
    samples_K2 = np.array(merge["samples"]["groups"], dtype=np.float64)  # None is NaN
    samples_K2 = samples_K2[np.isfinite(samples_K2).all(axis=1)]
    low_2, high_2 = front_P2.min(axis=0), front_P2.max(axis=0)
    spread_2 = np.ptp(np.concatenate([front_P2, samples_K2]), axis=0)
    span_2 = np.maximum(high_2 - low_2, np.maximum(0.1 * spread_2, 1e-6))
    middle_2 = (low_2 + high_2) / 2
    return np.stack([middle_2 - 0.65 * span_2, middle_2 + 0.65 * span_2], axis=1)


def without_brackets(name: str) -> str:
    """Of a merge, those around the whole name."""
    return name.removeprefix("(").removesuffix(")")


def side_names(merge: Mapping[str, Any]) -> list[str]:
    """Of both sides, merges without brackets around the whole name."""
    return [without_brackets(side["name"]) if len(side["models"]) > 1 else str(side["name"]) for side in merge["sides"]]


def _models(merge: Mapping[str, Any]) -> list[str]:
    return [model for side in merge["sides"] for model in side["models"]]
