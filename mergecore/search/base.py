"""Ask and tell: the interface of every search method.

Shape suffixes: K candidates, N models, T objectives, P points of a front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mergecore.errors import InputError

if TYPE_CHECKING:
    from mergecore.fronts.config import FrontConfig
    from mergecore.surrogates import QuadraticFit


@dataclass(frozen=True)
class Objectives:
    """The T objectives: names, whether more is better, and ranges (None is unbounded).

    ``owners`` names for each the model that was fine-tuned for it, by its number, or None; empty when nobody asks.
    ``models`` are the models' names, for people; empty where they have none. ``parts`` says that the task vectors are
    parts of one merge, which coefficients of 1 give, rather than the models' own.
    """

    names: tuple[str, ...]
    maximise: tuple[bool, ...]
    lower: tuple[float | None, ...]
    upper: tuple[float | None, ...]
    owners: tuple[int | None, ...] = ()
    models: tuple[str, ...] = ()
    parts: bool = False

    def some(self, tasks: Sequence[int]) -> Objectives:
        """The objectives with these numbers."""

        def of(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[t] for t in tasks)

        owners = of(self.owners) if self.owners else ()
        return Objectives(
            of(self.names), of(self.maximise), of(self.lower), of(self.upper), owners, self.models, self.parts
        )


@dataclass(frozen=True)
class Front:
    """A Pareto front.

    Attributes:
        coefficients_PN: scaling coefficients.
        predicted_PT: metrics by surrogate; NaN where the method has none.
        real_PT: metrics of the real merged models; NaN where not evaluated.
        fits: the surrogates behind the predictions, one an objective; empty when the method has none.
    """

    coefficients_PN: np.ndarray
    predicted_PT: np.ndarray
    real_PT: np.ndarray
    fits: tuple[QuadraticFit, ...] = ()


class SearchOptions(BaseModel):
    """Options that every method has."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    box: tuple[float, float] | list[tuple[float, float]] = Field(
        (0.0, 1.0), description="[lower, upper] of every coefficient, or one pair for each model."
    )
    method: str
    seed: int = Field(0, ge=0)

    def box_array(self, models: int) -> np.ndarray:
        """The box as [N, 2]; ``ValueError`` when it is empty or has another number of rows."""
        rows = self.box if isinstance(self.box, list) else [self.box] * models
        box = np.array(rows, dtype=np.float64).reshape(-1, 2)
        if len(box) != models:
            raise ValueError(f"search.box: {len(box)} pairs for {models} models")
        if not np.isfinite(box).all() or not (box[:, 0] < box[:, 1]).all():
            raise ValueError("search.box: every pair must be [lower, upper] with lower < upper")
        return box


class Search(ABC):
    """One search method.

    The loop is the caller's: ``ask`` for coefficient vectors until there are none, ``tell`` their metrics, then take
    the ``front``. Results arrive in the order that was asked for; a failed evaluation is told as NaN. Whoever has
    workers idle may ``ask_ahead`` before the last of them are told.

    Class attributes:
        divisible: whether a front can be found from a part of what was asked for, and from other candidates as well.
        at_once: whether it asks for everything that it wants at once, and goes on from any part of it.
        takes_estimates: whether it may be told metrics that are estimates, where their noise says so.
        learns: whether what it searches is learned on labelled data by gradients first.

    Args:
        options: validated options of this class's ``Options``.
        models: N.
        objectives: the T objectives.

    Attributes:
        coefficients_KN, metrics_KT, noise_KT: what was told.
        wanted_KT: which metrics of the candidates asked for last are wanted; None when all are.
        label: what those candidates are, for people; empty for just another round.
        rounds: for each ``ask`` that depended on what was told, how much was known and what led to the proposals, as
            JSON values; kept with the run.
    """

    Options: ClassVar[type[SearchOptions]]
    divisible: ClassVar[bool] = True
    at_once: ClassVar[bool] = False
    takes_estimates: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def __init__(self, options: Any, *, models: int, objectives: Objectives) -> None:
        self.options = options
        self.models = models
        self.objectives = objectives
        self.box_N2: np.ndarray = options.box_array(models)
        self.coefficients_KN = np.empty((0, models))
        self.metrics_KT = np.empty((0, len(objectives.names)))
        self.noise_KT = np.empty((0, len(objectives.names)))
        self.wanted_KT: np.ndarray | None = None
        self.label = ""
        self.rounds: list[dict[str, Any]] = []

    @property
    @abstractmethod
    def budget(self) -> int:
        """Coefficient vectors that will be asked for in all."""

    @property
    def pairs(self) -> int:
        """(coefficient vector, task) evaluations that will be asked for in all, at most."""
        return self.budget * len(self.objectives.names)

    @property
    def fewest(self) -> int:
        """Coefficient vectors without which there is no front."""
        return 1

    @property
    def wants_some(self) -> bool:
        """Whether it may want only some of the metrics of what it asks for."""
        return False

    @property
    def asks_ahead(self) -> bool:
        """Whether `ask_ahead` may have something."""
        return False

    @abstractmethod
    def ask(self) -> np.ndarray:
        """The next coefficient vectors [k, N]; empty [0, N] when the method is done."""

    def ask_ahead(self, pending_QN: np.ndarray) -> np.ndarray:
        """Coefficient vectors [k, N] to go on with while what was asked for last is still being evaluated.

        Empty [0, N] where the method waits for that instead.

        Args:
            pending_QN: what was asked for and is not told yet.
        """
        return np.empty((0, self.models))

    @abstractmethod
    def front(self, options: FrontConfig) -> Front:
        """The front from everything told so far.

        Raises:
            NumericalError: nothing usable was told.
        """

    def notes(self, *, workers: int = 1) -> list[str]:
        """Sentences a user should read before the run starts, on so many workers."""
        return []

    def tell(self, coefficients_KN: np.ndarray, metrics_KT: np.ndarray, noise_KT: np.ndarray | None = None) -> None:
        """Add evaluated coefficient vectors.

        Args:
            coefficients_KN: [K, N].
            metrics_KT: [K, T]; NaN marks a metric that could not be measured, or was not wanted.
            noise_KT: their standard errors [K, T], NaN where unknown; all unknown by default.

        Raises:
            InputError: shapes that do not fit.
            NumericalError: a method that merges on what it was told was told nothing usable.
        """
        c, m = np.asarray(coefficients_KN, dtype=np.float64), np.asarray(metrics_KT, dtype=np.float64)
        noise = np.full_like(m, np.nan) if noise_KT is None else np.asarray(noise_KT, dtype=np.float64)
        expected = (len(c), len(self.objectives.names))
        if c.ndim != 2 or c.shape[1] != self.models or m.shape != expected or noise.shape != expected:
            raise InputError(f"Told coefficients {list(c.shape)} with metrics {list(m.shape)}.")
        self.coefficients_KN = np.vstack([self.coefficients_KN, c])
        self.metrics_KT = np.vstack([self.metrics_KT, m])
        self.noise_KT = np.vstack([self.noise_KT, noise])

    def state(self) -> dict[str, Any]:
        """What was told, as plain JSON values; with the same options it restores the search."""
        return {
            "coefficients": self.coefficients_KN.tolist(),
            "metrics": _without_nan(self.metrics_KT),
            "noise": _without_nan(self.noise_KT),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; a search that was told something already is refused."""
        if len(self.coefficients_KN):
            raise InputError("Only a fresh search can be restored.")
        if state["coefficients"]:
            metrics, noise = (np.array(state[name], dtype=np.float64) for name in ("metrics", "noise"))  # None is NaN
            self.tell(np.array(state["coefficients"]), metrics, noise)


def _without_nan(values_KT: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else value for value in row] for row in values_KT.tolist()]
