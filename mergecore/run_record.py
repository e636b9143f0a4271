"""What a finished run has to say, in memory; :mod:`mergecore.run_folder` writes and reads it.

Shapes: K evaluated candidates, P points of the front, N models, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from mergecore.errors import InputError

FrontKind = Literal["predicted", "real", "test"]
FRONT_KINDS: tuple[FrontKind, ...] = ("predicted", "real", "test")
EVALUATION_FACTS = ("round", "seconds", "worker", "fingerprint", "status")


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """One objective: its metric, which way is better, and the metric's range (None where it is unbounded)."""

    name: str
    metric: str
    maximise: bool
    lower: float | None = None
    upper: float | None = None


@dataclass(kw_only=True)
class RunRecord:
    """Everything a finished run has to say.

    Attributes:
        name: what the study is called.
        models: the N model names, in the order of the coefficients; the T task names where `takes_preferences`.
        tasks: the T objectives, in the order of the metrics.
        front: P rows; columns ``c.<model>``, ``predicted.<task>`` (by the surrogates), ``real.<task>`` (verified on the
            data that the search used) and ``test.<task>`` (the held-out split); NaN where not measured. A missing
            ``predicted``, ``real`` or ``test`` column means that nothing of it was measured.
        evaluations: K rows; columns ``c.<model>``, ``<task>`` and ``EVALUATION_FACTS``, as far as they are known.
        surrogates: for each task's name what was fitted; empty when the search used none.
        summary: the run's figures (see :mod:`mergecore.pages.report` for those that the page shows).
        config: the resolved configuration.
    """

    name: str
    models: list[str]
    tasks: list[TaskInfo]
    front: pd.DataFrame
    evaluations: pd.DataFrame
    surrogates: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def takes_preferences(self) -> bool:
        """Whether trained routers make a network of a preference (PWE-MoE), which is written where coefficients are."""
        return "pareto_moe" in self.summary

    def front_coefficients(self) -> np.ndarray:
        """Scaling coefficients of the front, [P, N]."""
        return as_numbers(self.front, coefficient_columns(self.models))

    def front_metrics(self, kind: FrontKind) -> np.ndarray:
        """Metrics of the front, [P, T], each in its own unit and direction; NaN where not measured."""
        return as_numbers(self.front, front_columns(kind, self.tasks))

    def evaluated_coefficients(self) -> np.ndarray:
        """Scaling coefficients of every evaluation, [K, N]."""
        return as_numbers(self.evaluations, coefficient_columns(self.models))

    def evaluated_metrics(self) -> np.ndarray:
        """Metrics of every evaluation, [K, T]; NaN where an evaluation failed."""
        return as_numbers(self.evaluations, [task.name for task in self.tasks])


def coefficient_columns(models: Iterable[str]) -> list[str]:
    """The columns that hold the coefficients of ``models``."""
    return [f"c.{model}" for model in models]


def front_columns(kind: str, tasks: Iterable[TaskInfo]) -> list[str]:
    """The columns of ``front.csv`` that hold one of ``FRONT_KINDS`` for ``tasks``."""
    return [f"{kind}.{task.name}" for task in tasks]


def check_names(models: Sequence[str], tasks: Sequence[str]) -> None:
    """Raise ``InputError`` when these names cannot all be column names of one table."""
    columns = [*coefficient_columns(models), *tasks, *EVALUATION_FACTS]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise InputError(
            f"The column {twice!r} of evaluations.csv would appear twice.",
            f"Model names and task names must differ, and no task may be called {', '.join(EVALUATION_FACTS)}.",
        )
    for name in (*models, *tasks):
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(f"The name {name!r} is not text that UTF-8 can hold.") from None


def as_numbers(frame: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """The columns as float64 [rows, columns]; a column that is not there is NaN."""
    numbers = np.full((len(frame), len(columns)), np.nan)
    for index, column in enumerate(columns):
        if column in frame:
            numbers[:, index] = pd.to_numeric(frame[column]).to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers
