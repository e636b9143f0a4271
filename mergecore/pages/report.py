"""The page a run leaves: one self-contained HTML file that needs no network.

Shapes: K evaluations, P points of the front, N models, T tasks.

The page reads these keys of ``RunRecord.summary``, each of them optional, and the versions from
``config["resolved"]["versions"]``:

=========================  ===============================================================================
``method``                 the search method (else ``config["search"]["method"]``)
``diagnosis``              ``sentence``, the result in plain words; ``correlation`` [T, T], metrics turned so
                           that more is better
``evaluations``            ``coefficient_vectors``, ``pairs`` of one with a task, ``known_pairs`` from earlier
                           runs, ``failed`` pairs (else counted in the table)
``spent``                  ``ended``: which bound ended the search, if one did
``timings``                seconds for each stage; ``total`` among them is the wall time (else their sum)
``hypervolume``            ``real`` and ``predicted`` points of the front
``reference_point``        ``values``, task to number
``hypervolume_by_round``   one number a round
``rounds``                 of nested MAP: its merges
``pareto_moe``             of PWE-MoE: what its routers learned; the page shows all of it
=========================  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mergecore.budget import ending
from mergecore.pages.page import fill_page
from mergecore.pictures.tree import merge_tree, tree_data
from mergecore.plain import plain, to_yaml
from mergecore.run_record import FRONT_KINDS, RunRecord


def render_report(record: RunRecord, *, folder: str | Path | None = None) -> str:
    """The run as one HTML page that opens from disk with no network.

    NaN shows as a dash. A front with one point, a constant metric, no verified point, no surrogate and no evaluation
    are all shown as what they are.

    Args:
        record: the run.
        folder: where the run lies, for the command that the page offers; default ``runs/<name>``.
    """
    return fill_page(
        "report_page.html",
        title=record.name,
        data=page_data(record, folder=folder),
        css=["report_page.css"],
        scripts=[
            "report_choice.js",
            "page_charts.js",
            "page_elements.js",
            "report_charts.js",
            "report_tree.js",
            "report_routers.js",
            "report_page.js",
        ],
    )


def page_data(record: RunRecord, *, folder: str | Path | None = None) -> dict[str, Any]:
    """What the page's scripts read, in JSON's types; None stands for a number that was not measured."""
    metrics = {kind: record.front_metrics(kind) for kind in FRONT_KINDS}
    measured = {kind: bool(np.isfinite(metrics_PT).any()) for kind, metrics_PT in metrics.items()}
    basis = "predicted" if measured["predicted"] else "real"
    verified_P = np.isfinite(metrics["real"]).all(axis=1)
    summary = record.summary
    diagnosis = _mapping(summary.get("diagnosis"))
    method = summary.get("method") or _mapping(record.config.get("search")).get("method")
    data: dict[str, Any] = {
        "name": record.name,
        "method": method or "",
        "sentence": diagnosis.get("sentence") or _sentence(record),
        "folder": str(folder if folder is not None else Path("runs") / record.name),
        "models": record.models,
        "tasks": [asdict(task) for task in record.tasks],
        "basis": basis,
        "measured": measured,
        "front": {"coefficients": record.front_coefficients(), **metrics},
        "verified": np.flatnonzero(verified_P),
        "evaluations": {"metrics": record.evaluated_metrics(), "round": _rounds(record)},
        "references": references(record),
        "surrogates": _surrogates(record),
        "correlation": diagnosis.get("correlation") or correlation(record),
        "hypervolumeByRound": summary.get("hypervolume_by_round") or [],
        "tree": tree_data(merge_tree(summary)),
        "routers": summary["pareto_moe"] if record.takes_preferences else None,
        "figures": _figures(record),
        "documents": {
            "config": to_yaml(record.config) if record.config else "",
            "versions": _yaml_or_nothing(_mapping(record.config.get("resolved")).get("versions")),
            "summary": _yaml_or_nothing(summary),
        },
    }
    return plain(data, finite=True)


def references(record: RunRecord) -> list[dict[str, Any]]:
    """The base and the single models as they were measured: rows whose coefficients are zero or one-hot.

    None where networks are made of preferences, whose unit vectors are no single models.

    Each has a ``kind`` ("base" or "model"), a ``name`` and its ``metrics`` [T]; the first row counts, and one without
    any metric is passed over.
    """
    if record.takes_preferences:
        return []
    coefficients_KN, metrics_KT = record.evaluated_coefficients(), record.evaluated_metrics()
    found: dict[str, dict[str, Any]] = {}
    for coefficients_N, metrics_T in zip(coefficients_KN, metrics_KT, strict=True):
        if not np.isfinite(metrics_T).any():
            continue
        if not coefficients_N.any():
            found.setdefault("base", {"kind": "base", "name": "base", "metrics": metrics_T})
        elif np.count_nonzero(coefficients_N) == 1 and coefficients_N.max() == 1.0:
            model = record.models[int(coefficients_N.argmax())]
            found.setdefault(f"model {model}", {"kind": "model", "name": model, "metrics": metrics_T})
    return list(found.values())


def correlation(record: RunRecord) -> np.ndarray:
    """Correlation [T, T] of the metrics over the evaluations, every metric turned so that more is better.

    Rows that miss a metric are left out; NaN for a task whose metric never changed, or fewer than three rows.
    """
    signs_T = np.array([1.0 if task.maximise else -1.0 for task in record.tasks])
    gains_KT = record.evaluated_metrics() * signs_T
    gains_KT = gains_KT[np.isfinite(gains_KT).all(axis=1)]
    T = len(record.tasks)
    correlation_TT = np.full((T, T), np.nan)
    varies_T = np.ptp(gains_KT, axis=0) > 0 if len(gains_KT) > 2 else np.zeros(T, dtype=bool)
    if varies_T.any():
        correlation_TT[np.ix_(varies_T, varies_T)] = np.corrcoef(gains_KT[:, varies_T], rowvar=False)
    return correlation_TT


def _figures(record: RunRecord) -> dict[str, Any]:
    summary, metrics_KT = record.summary, record.evaluated_metrics()
    counted = _mapping(summary.get("evaluations"))
    timings = {stage: seconds for stage, seconds in _mapping(summary.get("timings")).items() if _is_number(seconds)}
    stages = {stage: seconds for stage, seconds in timings.items() if stage != "total"}
    volumes = _mapping(summary.get("hypervolume"))
    measured = volumes.get("real") is not None
    point = _mapping(_mapping(summary.get("reference_point")).get("values"))
    return {
        "vectors": counted.get("coefficient_vectors", len(metrics_KT)),
        "pairs": counted.get("pairs", metrics_KT.size),
        "known": counted.get("known_pairs", 0),
        "failed": counted.get("failed", int((~np.isfinite(metrics_KT)).sum())),
        "ended": f"the search {ending(spent).partition(':')[0]}" if (spent := _mapping(summary.get("spent"))) else "",
        "seconds": timings.get("total", sum(stages.values()) if stages else None),
        "longestStage": max(stages.items(), key=lambda item: item[1]) if stages else None,
        "hypervolume": volumes.get("real" if measured else "predicted"),
        "hypervolumeOf": "of the measured points" if measured else "of the predicted front",
        "referencePoint": [point.get(task.name) for task in record.tasks] if point else [],
    }


def _surrogates(record: RunRecord) -> list[dict[str, Any]]:
    """What the page says of each surrogate, in the order of the tasks."""
    errors_PT = np.abs(record.front_metrics("predicted") - record.front_metrics("real"))
    return [
        {
            "task": task.name,
            "link": fit.get("link", ""),
            "heldOutR2": fit.get("held_out_r2"),
            "pressR2": fit.get("press_r2"),
            "gap": errors_T[np.isfinite(errors_T)].mean() if np.isfinite(errors_T).any() else None,
            "samples": fit.get("samples"),
            "excluded": fit.get("excluded"),
            "warnings": fit.get("warnings") or [],
            "observed": fit.get("observed", []),
            "outOfFold": fit.get("out_of_fold", []),
        }
        for task, errors_T in zip(record.tasks, errors_PT.T, strict=True)
        if (fit := record.surrogates.get(task.name)) is not None
    ]


def _rounds(record: RunRecord) -> list[Any]:
    rounds = record.evaluations["round"] if "round" in record.evaluations else [np.nan] * len(record.evaluations)
    return [float(number) for number in rounds]


def _sentence(record: RunRecord) -> str:
    points, tasks = len(record.front), len(record.tasks)
    return f"{points} merged model{'s' * (points != 1)} on the front of {tasks} task{'s' * (tasks != 1)}."


def _yaml_or_nothing(value: Any) -> str:
    return to_yaml(value) if value else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    """``value``, or nothing when it is not a mapping: what a summary leaves out, the page leaves out."""
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
