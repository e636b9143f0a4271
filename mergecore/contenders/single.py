"""The single-task models, each on its own task: what a merge could reach if tasks did not interfere."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mergecore.contenders.base import Contender


class SingleModels(Contender):
    """For task t the model that was fine-tuned for it; N models in the place of one."""

    bound: ClassVar[bool] = True

    def choose(self, preferences_RT: np.ndarray, *, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """[R, T, N] unit vectors."""
        units_TN = np.eye(self.field.columns)[[self.field.owner(t) for t in range(len(self.field.owners))]]
        return np.tile(units_TN, (len(preferences_RT), 1, 1)), self.unpredicted(preferences_RT)
