"""Pick one point of a run's front by preference, by constraints, or the knee; of trained routers, at any preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from mergecore.errors import InputError
from mergecore.fronts.choose import by_constraints, by_preference, knee
from mergecore.pareto_moe.rays import TOLERANCE
from mergecore.registry import did_you_mean
from mergecore.run_record import FRONT_KINDS, RunRecord

NO_ROW = -1
"""Index of a pick that is no row of the front."""


@dataclass(frozen=True)
class Pick:
    """A chosen point.

    Attributes:
        index: row of front.csv, or `NO_ROW`.
        coefficients: model to scaling coefficient; task to preference where routers make the network of that.
        metrics: kind ("predicted", "real", "test") to task to metric, without what was not measured.
        chosen_by: the kind of metrics that the choice was made on; "preference" where that alone says which network.
    """

    index: int
    coefficients: dict[str, float]
    metrics: dict[str, dict[str, float]]
    chosen_by: Literal["predicted", "real", "preference"]


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
        prefer: task to preference; tasks left out count as 0. Trained routers are unloaded at exactly this preference
            (`at_preference`), unless the choice is among ``verified`` points.
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
    if prefer and record.takes_preferences and not verified:
        return at_preference(record, prefer)
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
    return _front_pick(record, int(index), kind)


def corner_table(record: RunRecord) -> pd.DataFrame:
    """What a front gives for preferences that every run on the same tasks shares, so that fronts compare row by row.

    Returns:
        A row for all tasks alike and for each task alone: ``preference``; ``metrics``, every task's in one text; a
        column of metrics for each task, and one of coefficients for each model. Empty where nothing can be chosen.
    """
    names = [task.name for task in record.tasks]
    wishes = {"all tasks alike": dict.fromkeys(names, 1.0)} | {f"only {name}": {name: 1.0} for name in names}
    rows = []
    for label, prefer in wishes.items():
        try:
            pick = pick_point(record, prefer=prefer)
        except InputError:  # nothing on this front can be chosen
            continue
        known = dict.fromkeys(names, np.nan)
        for kind in ("predicted", "real"):  # what was measured stands for what was predicted
            known |= pick.metrics.get(kind, {})
        shown = ", ".join(f"{name} {known[name]:.4f}" for name in names)
        coefficients = {f"c.{name}": value for name, value in pick.coefficients.items()}
        rows.append({"preference": label, "metrics": shown, **{n: known[n] for n in names}, **coefficients})
    return pd.DataFrame(rows)


def at_preference(record: RunRecord, prefer: Mapping[str, float]) -> Pick:
    """The network that trained routers make of a preference, which need not have been measured.

    Args:
        record: of PWE-MoE.
        prefer: task to preference; tasks left out count as 0.

    Returns:
        The row of the front at this preference if there is one; otherwise no row, with the metrics that the search may
        have measured there.

    Raises:
        InputError: unknown task, a negative number, nothing above 0.
    """
    names = [task.name for task in record.tasks]
    shares = _preference(prefer, names)
    r_T = np.array([shares.get(name, 0.0) for name in names])
    rows = _at(record.front_coefficients(), r_T)
    if len(rows):
        return _front_pick(record, int(rows[0]), "preference")
    metrics_KT = record.evaluated_metrics()
    measured = [k for k in _at(record.evaluated_coefficients(), r_T) if np.isfinite(metrics_KT[k]).all()]
    metrics = {"real": dict(zip(names, metrics_KT[measured[0]].tolist(), strict=True))} if measured else {}
    return Pick(NO_ROW, dict(zip(names, r_T.tolist(), strict=True)), metrics, "preference")


def _at(preferences_KT: np.ndarray, r_T: np.ndarray) -> np.ndarray:
    """The rows that hold this preference."""
    return np.flatnonzero((np.abs(preferences_KT - r_T) <= TOLERANCE).all(axis=1))


def _front_pick(record: RunRecord, row: int, chosen_by: Literal["predicted", "real", "preference"]) -> Pick:
    names = [task.name for task in record.tasks]
    metrics = {kind: record.front_metrics(kind)[row] for kind in FRONT_KINDS}
    return Pick(
        index=row,
        coefficients=dict(zip(record.models, record.front_coefficients()[row].tolist(), strict=True)),
        metrics={
            kind: dict(zip(names, metrics_T.tolist(), strict=True))
            for kind, metrics_T in metrics.items()
            if np.isfinite(metrics_T).all()
        },
        chosen_by=chosen_by,
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
