"""TSV-M (Gargiulo et al., "Task singular vectors: Reducing task interference in model merging", CVPR 2025).

Each task keeps its largest singular triplets, so many that all tasks together have full rank; the joint singular
vectors are then made orthogonal (the nearest orthonormal matrix, by Procrustes). A column is one task's part of the
result, U'_n diag(s_n) V'_nᵀ, so the columns sum to the TSV-M task vector at c = 1. Tensors that are no matrices are
averaged.

A matrix without full rank (an adapter's, one that a model did not change) has arbitrary vectors beside its singular
values of zero. They take no part: with them, the vectors of the other tasks would be turned away from nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mergecore.transforms.base import Transform

if TYPE_CHECKING:
    from mergecore.task_matrix import TaskMatrix


class TsvM(Transform):
    """Each task's part of the whitened low-rank sum."""

    elementwise: ClassVar[bool] = False
    parts: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._models = 0

    def prepare(self, matrix: TaskMatrix) -> None:
        """Count the tasks; a model that equals the base is one of them, though it has no differences."""
        self._models = len(matrix.models)

    def tensor(self, deltas: torch.Tensor, *, name: str, part: int) -> torch.Tensor:
        """One matrix: two singular value decompositions of its own size, and one for each task."""
        if deltas.ndim != 3:
            return deltas.div_(self._models)
        rank = max(1, min(deltas.shape[1:]) // self._models)
        triplets = [leading_triplets(delta, rank) for delta in deltas]
        left = nearest_orthonormal(torch.cat([u for u, _, _ in triplets], dim=1))
        right = nearest_orthonormal(torch.cat([v for _, _, v in triplets], dim=1))
        for n, (_, s, _) in enumerate(triplets):
            own = slice(n * rank, (n + 1) * rank)
            deltas[n] = (left[:, own] * s) @ right[:, own].T
        return deltas


def leading_triplets(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ``rank`` largest singular values s with their vectors; all zero where the matrix has no such rank.

    Returns:
        U [rows, rank], s [rank] and V [cols, rank].
    """
    if matrix.shape[0] < matrix.shape[1]:  # LAPACK is twice as fast on a tall matrix as on a wide one
        v, s, u = leading_triplets(matrix.T, rank)
        return u, s, v
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    told = above_rounding(s)[:rank]
    return u[:, :rank] * told, s[:rank] * told, vh[:rank].T * told


def nearest_orthonormal(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with orthonormal columns that is nearest in the Frobenius norm (orthogonal Procrustes).

    Without full rank that matrix is not unique. This is then the partial isometry of the polar decomposition: it keeps
    the range, and what the matrix maps to zero stays zero.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u * above_rounding(s)) @ vh


def above_rounding(s: torch.Tensor) -> torch.Tensor:
    """Which singular values, largest first, are told from zero: those that are more than rounding makes of it."""
    return s > len(s) * torch.finfo(s.dtype).eps * s[0]
