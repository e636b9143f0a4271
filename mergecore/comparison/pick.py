"""Pick one point of one method from the folder of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from mergecore.comparison.config import MethodConfig
from mergecore.comparison.names import kind_of, takes_preferences
from mergecore.config import StudyConfig
from mergecore.config_file import parse_config
from mergecore.contenders import CONTENDERS
from mergecore.errors import InputError, first_line
from mergecore.pick import NO_ROW, Pick, at_preference, pick_point
from mergecore.registry import did_you_mean
from mergecore.run_record import FRONT_KINDS, RunRecord, TaskInfo, coefficient_columns, front_columns

POINTS = "points.csv"


def is_comparison(folder: Path) -> bool:
    """Whether the flow `compare` left this folder."""
    return (folder / POINTS).is_file()


def compared_method(config: StudyConfig, label: str | None) -> MethodConfig:
    """The method that tables call ``label``.

    Raises:
        InputError: there is none, or it is no merge.
    """
    methods = {method.label: method for method in config.comparison.methods}
    if label is None:
        raise InputError("A comparison has many fronts.", f"Say whose with '--method': {', '.join(methods)}.")
    if label not in methods:
        raise InputError(f"The comparison has no method {label!r}.", did_you_mean(label, methods))
    method = methods[label]
    if kind_of(method.method) == "rule" and CONTENDERS.get(method.method).bound:
        raise InputError(f"{label!r} is no merge: each task has a model of its own.")
    return method


def read_method(folder: Path, method: str | None, models: int | None) -> RunRecord:
    """What one method gave for one number of models, as the record of a run.

    Its front is the method's front, or the one point that serves every preference.

    Args:
        folder: of the comparison.
        method: its label.
        models: number of models; default: the largest that was compared.

    Returns:
        Its ``summary`` holds the method's label and how many models were ``merged``.

    Raises:
        InputError: broken files; no such method or number of models; a method that was left out or is no merge.
    """
    data = _config_data(folder)
    config = parse_config(data, where=str(folder / "config.yaml"))
    chosen = compared_method(config, method)
    try:
        points = pd.read_csv(folder / POINTS, float_precision="round_trip")
        own = points[points["method"] == chosen.label]
        counts = sorted({int(count) for count in own["models"]})
    except (ValueError, KeyError) as error:
        raise InputError(f"The file {str(folder / POINTS)!r} is broken: {first_line(error)}.") from None
    if not counts:
        raise InputError(f"The method {chosen.label!r} gave nothing; tables.md says why.")
    count = models if models is not None else counts[-1]
    if count not in counts:
        raise InputError(
            f"{chosen.label!r} was not compared for {count} models.", f"It was for {', '.join(map(str, counts))}."
        )
    study = config.first(count)
    routed = takes_preferences(chosen.method)
    if kind_of(chosen.method) == "merge":
        columns = [chosen.method]
    else:
        columns = [item.name for item in (study.tasks if routed else study.models)]
    infos = [
        TaskInfo(name=t.name, metric=t.metric, maximise=t.maximise, lower=t.bounds[0], upper=t.bounds[1])
        for t in study.tasks
    ]
    own = own[own["models"] == count]
    front = own[own["use"] == "front"] if (own["use"] == "front").any() else own
    wanted = coefficient_columns(columns) + [name for kind in FRONT_KINDS for name in front_columns(kind, infos)]
    return RunRecord(
        name=f"{config.name}: {chosen.label}",
        models=columns,
        tasks=infos,
        front=front[wanted].drop_duplicates(coefficient_columns(columns), ignore_index=True),
        evaluations=pd.DataFrame(),
        summary={"method": chosen.label, "merged": count, **({"pareto_moe": {}} if routed else {})},
        config=data,
    )


def pick_method_point(record: RunRecord, **wishes: Any) -> Pick:
    """`mergecore.pick.pick_point` on a method's record; a method with one point needs no wish.

    Args:
        record: from `read_method`.
        wishes: of `pick_point`.
    """
    method = compared_method(parse_config(record.config), record.summary["method"])
    if method.method == "preference_weights":
        return _by_weights(record, wishes.get("prefer"))
    if takes_preferences(method.method) and wishes.get("prefer") and not wishes.get("verified"):
        return at_preference(record, wishes["prefer"])
    if len(record.front) > 1:
        return pick_point(record, **wishes)
    return _point(record, record.front_coefficients()[0], 0)


def _by_weights(record: RunRecord, prefer: Mapping[str, float] | None) -> Pick:
    """The coefficients are the preference."""
    names = [task.name for task in record.tasks]
    if not prefer or any(name not in names for name in prefer) or sum(prefer.values()) <= 0:
        raise InputError("The coefficients of this method are the preference.", "Say it with --prefer TASK=WEIGHT.")
    owners = parse_config(record.config).first(record.summary["merged"]).owners
    weights = np.zeros(len(record.models))
    for name, weight in prefer.items():
        owner = owners[names.index(name)]
        assert owner is not None  # the method was compared
        weights[owner] += weight / sum(prefer.values())
    return Pick(NO_ROW, dict(zip(record.models, weights.tolist(), strict=True)), {}, "predicted")


def _point(record: RunRecord, coefficients_N: np.ndarray, row: int) -> Pick:
    names = [task.name for task in record.tasks]
    metrics = {kind: record.front_metrics(kind)[row] for kind in FRONT_KINDS}
    return Pick(
        index=row,
        coefficients=dict(zip(record.models, coefficients_N.tolist(), strict=True)),
        metrics={
            kind: dict(zip(names, found_T.tolist(), strict=True))
            for kind, found_T in metrics.items()
            if np.isfinite(found_T).all()
        },
        chosen_by="real",
    )


def _config_data(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    try:
        data = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"The file {str(file)!r} is broken: {first_line(error)}.") from None
    if not isinstance(data, dict):
        raise InputError(f"The file {str(file)!r} is broken: it does not hold a mapping of keys to values.")
    return data
