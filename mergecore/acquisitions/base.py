"""The interface of acquisitions.

Shape suffixes: K evaluated candidates, N coefficients, T objectives, Q pending candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mergecore.options import PluginOptions

if TYPE_CHECKING:
    from mergecore.search.base import Objectives
    from mergecore.surrogates import QuadraticFit


MOST_OBJECTIVES = 4
"""Whose expected hypervolume is computed exactly; past them it is dear."""


@dataclass(frozen=True)
class Known:
    """What an acquisition knows.

    Attributes:
        coefficients_KN: what was evaluated.
        metrics_KT: NaN where an evaluation failed.
        noise_KT: standard errors of the metrics; NaN where unknown.
        fits: the quadratic surrogate of each objective.
        box_N2: where to look.
        objectives: directions and ranges.
        pending_QN: asked for, but not evaluated yet.
    """

    coefficients_KN: np.ndarray
    metrics_KT: np.ndarray
    noise_KT: np.ndarray
    fits: tuple[QuadraticFit, ...]
    box_N2: np.ndarray
    objectives: Objectives
    pending_QN: np.ndarray


class Acquisition(ABC):
    """Proposes candidates.

    Class attributes:
        Options: what ``search.acquisition_options`` may say.
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def propose(self, known: Known, count: int, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The next candidates.

        Args:
            known: what was evaluated and what is pending.
            count: how many candidates.
            seed: of everything random in here; the same arguments give the same candidates to the bit.

        Returns:
            [count, N] in the box, and what led to them as JSON values, to be kept with the round.
        """
