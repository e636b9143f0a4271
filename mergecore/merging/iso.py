"""Iso-C and Iso-CTS (Marczak et al., "No task left behind: Isotropic model merging with common and task-specific
subspaces", ICML 2025): a merged task vector whose singular values are all equal.

Tensors that are no matrices are averaged, as the authors do. Validation data chooses the scale of the result, which
the papers call alpha.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from mergecore.merging.base import Merge
from mergecore.options import PluginOptions
from mergecore.transforms.tsv_m import nearest_orthonormal

SCALES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Steps of √2: equal singular values are small where a few directions carry most of a task vector, so scales vary."""


class IsoC(Merge):
    """The sum of the task vectors, its singular values replaced by their mean (Algorithm 1)."""

    scales: ClassVar[tuple[float, ...]] = SCALES

    def tensor(self, deltas: torch.Tensor, base: torch.Tensor, *, name: str) -> torch.Tensor:
        """U mean(s) Vᵀ of the sum of matrices, the mean of anything else."""
        if deltas.ndim != 3:
            return deltas.mean(dim=0)
        u, s, vh = torch.linalg.svd(deltas.sum(dim=0), full_matrices=False)
        return s.mean() * (u @ vh)


class IsoCtsOptions(PluginOptions):
    """Options of Iso-CTS."""

    common: float = Field(0.8, ge=0, le=1, description="Share of the singular directions that all tasks share.")


class IsoCts(Merge):
    """The leading directions of the sum, and each task's own in what they leave over (Algorithm 2)."""

    Options: ClassVar[type[PluginOptions]] = IsoCtsOptions
    scales: ClassVar[tuple[float, ...]] = SCALES

    def tensor(self, deltas: torch.Tensor, base: torch.Tensor, *, name: str) -> torch.Tensor:
        """One singular value decomposition of the sum, one for each task, two of the joint directions."""
        if deltas.ndim != 3:
            return deltas.mean(dim=0)
        models, rank = len(deltas), min(deltas.shape[1:])
        # the tasks' share of the directions, cut so that each task has as many
        own = round((rank - int(rank * self.options.common)) / models)
        shared = max(rank - own * models, 0)
        u, s, vh = torch.linalg.svd(deltas.sum(dim=0), full_matrices=False)
        common = u[:, :shared]
        left, values, right = [], [], []
        for delta in deltas:
            u_own, s_own, vh_own = torch.linalg.svd(delta - common @ (common.T @ delta), full_matrices=False)
            left.append(u_own[:, :own])
            values.append(s_own[:own])
            right.append(vh_own[:own])
        u_joint = nearest_orthonormal(torch.cat([*left, common], dim=1)[:, :rank])
        v_joint = nearest_orthonormal(torch.cat([*right, vh[:shared]])[:rank].T)
        return torch.cat([*values, s[:shared]])[:rank].mean() * (u_joint @ v_joint.T)
