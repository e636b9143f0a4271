"""PWE-MoE as a contender: its routers are unloaded at the preference itself."""

from __future__ import annotations

import numpy as np

from mergecore.contenders.searched import Searched


class Unloaded(Searched):
    """The preference is the candidate; the search's front, of rays over the simplex, is shown behind it."""

    def choose(self, preferences_RT: np.ndarray, *, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """The preferences as they are."""
        return np.asarray(preferences_RT, dtype=np.float64), self.unpredicted(preferences_RT)
