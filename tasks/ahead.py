"""The next round of a search, chosen while the one before it is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Asked:
    """What one round of a search evaluates.

    Attributes:
        coefficients_KN: the candidates.
        wanted_KT: which metrics of them are wanted.
        label: what they are, for people; empty for just another round.
        cut: whether the search asked for more than its budget allows.
    """

    coefficients_KN: np.ndarray
    wanted_KT: np.ndarray
    label: str
    cut: bool


class Ahead:
    """A round that is asked for once, in a thread of its own, so that results are taken and kept meanwhile.

    Args:
        ask: gives the round, or None where the search has none yet; nothing else may use the search until it is found.
    """

    def __init__(self, ask: Callable[[], Asked | None]) -> None:
        self._ask = ask
        self._future: Future[Asked | None] | None = None

    def ready(self) -> bool:
        """Whether it has been chosen; begins to choose where nobody did."""
        return self._begun().done()

    def found(self) -> Asked | None:
        """What was chosen once `ready`; None also where that failed, which `result` tells."""
        future = self._begun()
        return None if future.exception() is not None else future.result()

    def result(self) -> Asked | None:
        """What was chosen, waited for; raises what choosing it raised."""
        return self._begun().result()

    def _begun(self) -> Future[Asked | None]:
        if self._future is None:
            thread = ThreadPoolExecutor(1, "ahead")
            self._future = thread.submit(self._ask)
            thread.shutdown(wait=False)
        return self._future
