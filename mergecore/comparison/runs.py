"""Compare the fronts of several runs: one table of measures, one picture. Suffixes: R runs, P points, T objectives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergecore.errors import InputError
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.indicators import (
    generational_distance,
    hypervolume,
    igd_plus,
    inverted_generational_distance,
    win_rate,
    worst_metrics,
)
from mergecore.run_record import RunRecord


def real_front(record: RunRecord) -> tuple[np.ndarray, str]:
    """The measured front of a run, [P, T], and what it was measured on.

    Held-out metrics when every run point that was verified has them, else those on the data of the search.

    Raises:
        InputError: no point of the front was measured.
    """
    for kind, label in (("test", "held-out data"), ("real", "data of the search")):
        metrics = record.front_metrics(kind)  # type: ignore[arg-type]
        measured = metrics[np.isfinite(metrics).all(axis=1)]
        if len(measured):
            return measured, label
    raise InputError(f"No point of the front of {record.name!r} was measured.", "Run it with front.verify > 0.")


def compare_runs(records: Sequence[RunRecord], *, seed: int = 0) -> pd.DataFrame:
    """Measures of the runs' real fronts, one row a run.

    The reference point of the hypervolume is the worst value of any run's front on each task; GD, IGD and IGD+ are
    distances to the non-dominated part of all fronts together; the win rate is against the other runs' points.

    Args:
        records: at least two finished runs with the same tasks and metrics.
        seed: of the draws of the win rate.

    Raises:
        InputError: fewer than two runs, or runs that measured different things.
    """
    if len(records) < 2:
        raise InputError("Name at least two runs to compare.")
    tasks = [(task.name, task.metric) for task in records[0].tasks]
    for record in records[1:]:
        if [(task.name, task.metric) for task in record.tasks] != tasks:
            raise InputError(
                f"{records[0].name!r} and {record.name!r} do not measure the same tasks in the same order."
            )
    maximise = [task.maximise for task in records[0].tasks]
    fronts = [real_front(record) for record in records]
    if len({label for _, label in fronts}) > 1:
        fronts = [(record.front_metrics("real"), "data of the search") for record in records]
        fronts = [(metrics[np.isfinite(metrics).all(axis=1)], label) for metrics, label in fronts]
    together = np.concatenate([metrics for metrics, _ in fronts])
    best = together[non_dominated(together, maximise=maximise)]
    reference = worst_metrics(together, maximise=maximise)
    rows = []
    for i, (record, (metrics, label)) in enumerate(zip(records, fronts, strict=True)):
        others = np.concatenate([other for j, (other, _) in enumerate(fronts) if j != i])
        rows.append(
            {
                "run": record.name,
                "method": record.summary.get("method", ""),
                "measured on": label,
                "points": len(metrics),
                "hypervolume": hypervolume(metrics, reference_T=reference, maximise=maximise),
                "GD": generational_distance(metrics, best),
                "IGD": inverted_generational_distance(metrics, best),
                "IGD+": igd_plus(metrics, best, maximise=maximise),
                "win rate": win_rate(metrics, others, maximise=maximise, generator=np.random.default_rng(seed)),
                "coefficient vectors": record.summary.get("evaluations", {}).get("coefficient_vectors"),
                "evaluations": record.summary.get("evaluations", {}).get("pairs"),
                "seconds": record.summary.get("timings", {}).get("total"),
            }
        )
    return pd.DataFrame(rows)
