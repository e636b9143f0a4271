"""TSV-M (Gargiulo et al., "Task singular vectors: Reducing task interference in model merging", CVPR 2025).

Each task keeps its largest singular triplets, so many that all tasks together have full rank; the joint singular
vectors are then made orthogonal (the nearest orthonormal matrix, by Procrustes). A column is one task's part of the
result, U'_n diag(s_n) V'_nᵀ, so the columns sum to the TSV-M task vector at c = 1. Tensors that are no matrices are
averaged.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from mergecore.transforms.base import WHOLE, Transform


class TsvM(Transform):
    """Each task's part of the whitened low-rank sum."""

    elementwise: ClassVar[bool] = False
    scales: ClassVar[tuple[float, ...]] = WHOLE

    def tensor(self, deltas: torch.Tensor, *, name: str, part: int) -> torch.Tensor:
        """One matrix: two singular value decompositions of its own size, and one for each task."""
        models = len(deltas)
        if deltas.ndim != 3 or not torch.isfinite(deltas).all():
            return deltas.div_(models)
        rank = max(1, min(deltas.shape[1:]) // models)
        triplets = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
        left = nearest_orthonormal(torch.cat([u[:, :rank] for u, _, _ in triplets], dim=1))
        right = nearest_orthonormal(torch.cat([vh[:rank].T for _, _, vh in triplets], dim=1))
        for n, (_, s, _) in enumerate(triplets):
            own = slice(n * rank, (n + 1) * rank)
            deltas[n] = (left[:, own] * s[:rank]) @ right[:, own].T
        return deltas


def nearest_orthonormal(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with orthonormal columns that is nearest in the Frobenius norm (orthogonal Procrustes)."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh
