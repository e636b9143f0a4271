"""Task arithmetic with the preference as coefficients (MAP, Section 4.3)."""

from __future__ import annotations

import numpy as np

from mergecore.contenders.base import Contender


class PreferenceWeights(Contender):
    """c_n = Σ of the preferences for the tasks that model n was fine-tuned for; they sum to 1."""

    def choose(self, preferences_RT: np.ndarray, *, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """No evaluation is needed."""
        coefficients_RN = np.zeros((len(preferences_RT), self.field.columns))
        for t in range(preferences_RT.shape[1]):
            coefficients_RN[:, self.field.owner(t)] += preferences_RT[:, t]
        return coefficients_RN, self.unpredicted(preferences_RT)
