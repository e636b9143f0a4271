"""Contenders that know their coefficients: the base as it is, and the uniform soup."""

from __future__ import annotations

import numpy as np

from mergecore.contenders.base import Contender


class Base(Contender):
    """No merge: c = 0."""

    value = 0.0

    def choose(self, preferences_RT: np.ndarray, *, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """The same coefficient for all models, whatever is preferred."""
        value = self.value
        return np.full((len(preferences_RT), self.field.columns), value), self.unpredicted(preferences_RT)


class Soup(Base):
    """Uniform average of the fine-tuned weights, c = 1/N (Wortsman et al., "Model soups", ICML 2022)."""

    @property
    def value(self) -> float:  # type: ignore[override]
        """1/N."""
        return 1.0 / self.field.columns
