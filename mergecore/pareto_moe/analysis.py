"""What the paper looks at beside the front: routing weights by depth, and how unlike the models' modules are.

Shape suffixes: T tasks, N models, G modules, S elements of a tensor, Q pairs of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from mergecore.pareto_moe.upscaling import Upscaling
from mergecore.task_matrix import TaskMatrix

EQUAL = "equal"
"""Name of the preference that shares out among all tasks."""
KINDS = {"attn": "attention", "mlp": "mlp"}
"""Modules that are told apart: what `mergecore.pareto_moe.upscaling` calls them, and what they are called here."""
TILE = 1 << 18
"""Elements of a tensor that are held in float64 at a time."""


class Routing(Protocol):
    """Trained routers, or those of a training."""

    def routing(self, preference_T: np.ndarray, /) -> np.ndarray:
        """Routing weights [G, N] for one preference."""


def routing_table(routers: Routing, tasks: Sequence[str]) -> dict[str, list[list[float]]]:
    """Routing weights [G, N] at the equal preference, by the name `EQUAL`, and at each task's unit preference.

    The paper's Figure 8; rows in the order of the modules' depth.
    """
    count = len(tasks)
    asked = {EQUAL: np.full(count, 1 / count), **dict(zip(tasks, np.eye(count), strict=True))}
    return {name: routers.routing(preference_T).tolist() for name, preference_T in asked.items()}


def dissimilarity(matrix: TaskMatrix, upscaling: Upscaling) -> dict[str, Any]:
    """How far apart the models' attention and MLP modules are, by depth (the paper's Figure 2).

    Args:
        matrix: of the models; adapters count as the weights that they make.
        upscaling: over its tensors. Only attention and MLP modules of blocks count, and only where models may differ.

    Returns:
        ``pairs``: the number of pairs of models that means are over. ``kinds``: for "attention" and "mlp", as far as
        there are any, lists by depth of the ``modules``, the ``blocks`` that they belong to, and two distances:
        ``cosine``, of two task vectors, 1 at a right angle, None where no two models change the module; ``distance``,
        the Euclidean distance of two models' weights as a root mean square per weight, so that a large module does not
        look farther apart than a small one.
    """
    kinds = {
        module: (KINDS[kind], block)
        for module in upscaling.modules
        for kind, block in [upscaling.describe(module)]
        if kind in KINDS and block is not None
    }
    grams: dict[str, np.ndarray] = {}
    sizes: Counter[str] = Counter()
    for index, entry in enumerate(matrix.layout.entries):
        module = upscaling.owners.get(entry.name)
        if module in kinds:
            grams[module] = grams.get(module, 0.0) + _gram(matrix, index)
            sizes[module] += entry.size
    found: dict[str, Any] = {}
    for module, (kind, block) in kinds.items():
        if module in grams:
            cosine, distance = _distances(grams[module], sizes[module])
            row = {"modules": module, "blocks": block, "cosine": cosine, "distance": distance}
            for name, value in row.items():
                found.setdefault(kind, {}).setdefault(name, []).append(value)
    count = len(matrix.models)
    return {"pairs": count * (count - 1) // 2, "kinds": dict(sorted(found.items()))}


def _gram(matrix: TaskMatrix, index: int) -> np.ndarray:
    """Inner products [N, N] of the task vectors of one tensor, summed in float64."""
    differences_NS = matrix.differences(index).flatten(1)
    gram_NN = torch.zeros(len(differences_NS), len(differences_NS), dtype=torch.float64, device=differences_NS.device)
    for tile in differences_NS.split(TILE, dim=1):
        wide = tile.to(torch.float64)
        gram_NN += wide @ wide.T
    return gram_NN.cpu().numpy()


def _distances(gram_NN: np.ndarray, size: int) -> tuple[float | None, float | None]:
    """Means over the pairs of models: cosine distance, and Euclidean distance per root of ``size``."""
    first_Q, second_Q = np.triu_indices(len(gram_NN), k=1)
    squares_N, inner_Q = np.diag(gram_NN), gram_NN[first_Q, second_Q]
    norms_Q = np.sqrt(squares_N[first_Q] * squares_N[second_Q])
    changed_Q = norms_Q > 0
    cosine_Q = 1 - inner_Q[changed_Q] / norms_Q[changed_Q]
    square_Q = np.maximum(squares_N[first_Q] + squares_N[second_Q] - 2 * inner_Q, 0.0)
    return _mean(cosine_Q), _mean(np.sqrt(square_Q / size))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
