"""Task arithmetic as it is (Ilharco et al., "Editing models with task arithmetic", ICLR 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergecore.task_matrix import TaskMatrix


def none(matrix: TaskMatrix) -> None:
    """Leave the task vectors unchanged: V' = V."""
