"""Pick one point of a run's front by preference, by constraints, or the knee."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mergecore.errors import InputError
from mergecore.fronts.choose import by_constraints, by_preference, knee
from mergecore.registry import did_you_mean
from mergecore.run_folder import RunRecord


@dataclass(frozen=True)
class Pick:
    """A chosen point.

    Attributes:
        index: row of front.csv.
        coefficients: model to scaling coefficient.
        metrics: kind ("predicted", "real", "test") to task to metric, without what was not measured.
        chosen_by: the kind of metrics that the choice was made on.
    """

    index: int
    coefficients: dict[str, float]
    metrics: dict[str, dict[str, float]]
    chosen_by: Literal["predicted", "real"]


def pick_point(
    record: RunRecord,
    *,
    prefer: Mapping[str, float] | None = None,
    at_least: Mapping[str, float] | None = None,
    maximize: str | None = None,
    at_knee: bool = False,
    verified: bool = False,
) -> Pick:
    """Choose a point of a front; exactly one way of choosing must be given.

    Args:
        record: a finished run.
        prefer: task to preference; tasks left out count as 0.
        at_least: task to bound ("at least as good as", also where less is better); used with ``maximize``.
        maximize: the task to make as good as possible among the points that meet the bounds.
        at_knee: the knee of the front.
        verified: only points whose real metrics are known, chosen by those; otherwise all points, chosen by their
            predicted metrics (real ones for methods without surrogates).

    Raises:
        InputError: unknown task, bad number, no way or two ways of choosing, no point that fits.
    """
    ways = [bool(prefer), maximize is not None or bool(at_least), at_knee]
    if sum(ways) != 1:
        raise InputError(
            "Choose in one way:", "--prefer TASK=WEIGHT, or --at-least TASK=BOUND --maximize TASK, or --knee."
        )
    names = [task.name for task in record.tasks]
    maximise = [task.maximise for task in record.tasks]
    predicted, real = record.front_metrics("predicted"), record.front_metrics("real")
    kind: Literal["predicted", "real"] = "real" if verified or np.isnan(predicted).all() else "predicted"
    metrics = real if kind == "real" else predicted
    if not np.isfinite(metrics).all(axis=1).any():
        raise InputError("No point of this front was verified.", "Leave --verified away, or run with front.verify > 0.")
    if prefer:
        weights = np.array([_preference(prefer, names).get(name, 0.0) for name in names])
        same = len({task.metric for task in record.tasks}) == 1
        index = by_preference(metrics, weights=weights, maximise=maximise, scale="none" if same else "range")
    elif at_knee:
        index = knee(metrics, maximise=maximise)
    else:
        if maximize is None:
            raise InputError("--at-least needs --maximize: which task should be as good as possible within the bounds?")
        bounds = {_position(name, names): _in_range(value, record, name) for name, value in (at_least or {}).items()}
        index = by_constraints(metrics, at_least=bounds, best=_position(maximize, names), maximise=maximise)
    row = int(index)
    kinds = {"predicted": predicted, "real": real, "test": record.front_metrics("test")}
    return Pick(
        index=row,
        coefficients=dict(zip(record.models, record.front_coefficients()[row].tolist(), strict=True)),
        metrics={
            label: dict(zip(names, values[row].tolist(), strict=True))
            for label, values in kinds.items()
            if np.isfinite(values[row]).all()
        },
        chosen_by=kind,
    )


def _preference(prefer: Mapping[str, float], names: list[str]) -> dict[str, float]:
    for name, weight in prefer.items():
        _position(name, names)
        if not np.isfinite(weight) or weight < 0:
            raise InputError(f"The preference {name}={weight} is not a number from 0.")
    if sum(prefer.values()) <= 0:
        raise InputError("At least one preference must be above 0.")
    return {name: weight / sum(prefer.values()) for name, weight in prefer.items()}


def _position(name: str, names: list[str]) -> int:
    if name not in names:
        raise InputError(f"This run has no task {name!r}.", did_you_mean(name, names))
    return names.index(name)


def _in_range(value: float, record: RunRecord, name: str) -> float:
    task = next(task for task in record.tasks if task.name == name)
    low = task.lower is not None and value < task.lower
    high = task.upper is not None and value > task.upper
    if not np.isfinite(value) or low or high:
        raise InputError(
            f"The bound {name}={value} lies outside the range [{task.lower}, {task.upper}] of {task.metric}."
        )
    return value
