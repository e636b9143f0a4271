"""Task arithmetic as it is (Ilharco et al., "Editing models with task arithmetic", ICLR 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mergecore.transforms.base import Transform

if TYPE_CHECKING:
    import torch


class Unchanged(Transform):
    """V' = V."""

    keeps_low_rank: ClassVar[bool] = True
    separate: ClassVar[bool] = True

    def tensor(self, deltas: torch.Tensor, *, name: str, part: int) -> torch.Tensor:
        """The differences as they are."""
        return deltas
