"""The page a comparison of merge methods leaves: one self-contained HTML file that needs no network.

Shapes: R preferences, P points of a front, T tasks.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from mergecore.comparison.methods import Comparison, MethodResult
from mergecore.comparison.tables import (
    Kind,
    counts,
    kind_of_data,
    left_out,
    measured,
    measures_table,
    of_count,
    points_of,
    preference_table,
    tasks_alike,
    weighted_sums,
)
from mergecore.pages.page import fill_page
from mergecore.plain import plain, to_yaml


def render_comparison(comparison: Comparison) -> str:
    """The comparison as one HTML page that opens from disk with no network.

    What was not measured shows as a dash. A method that gave nothing, one task, one number of models and metrics of
    different kinds are all shown as what they are.
    """
    return fill_page(
        "compare_page.html",
        title=comparison.name,
        data=page_data(comparison),
        css=["report_page.css", "compare_page.css"],
        # the first one writes numbers and names
        scripts=["report_choice.js", "page_charts.js", "page_elements.js", "compare_charts.js", "compare_page.js"],
    )


def page_data(comparison: Comparison) -> dict[str, Any]:
    """What the page's scripts read, in JSON's types; None stands for a number that was not measured."""
    kind, sums = kind_of_data(comparison), preference_table(comparison)
    by_count = counts(comparison)
    resolved = comparison.config.get("resolved")
    versions = resolved.get("versions") if isinstance(resolved, dict) else None
    data: dict[str, Any] = {
        "name": comparison.name,
        "sentences": headline(comparison),
        "heldOut": kind == "test",
        "alike": tasks_alike(comparison),
        "models": comparison.models,
        "tasks": [asdict(task) for task in comparison.tasks],
        "methods": _methods(comparison),
        "counts": by_count,
        "heats": [_heat(comparison, count, kind) for count in by_count],
        "preferences": max((len(found) - 1 for found in comparison.preferences.values()), default=0),
        "sums": {part: sums[[f"{count} {part}" for count in by_count]].to_numpy() for part in ("mean", "std")},
        "leftOut": _left_out(comparison),
        "documents": {
            "config": to_yaml(comparison.config) if comparison.config else "",
            "versions": to_yaml(versions) if versions else "",
            "summary": to_yaml(comparison.summary) if comparison.summary else "",
        },
    }
    return plain(data, finite=True)


def headline(comparison: Comparison) -> list[str]:
    """Which merges are best for the largest number of models, and where MAP stands; a sentence each."""
    kind = kind_of_data(comparison)
    count = max((result.models for result in _merges(comparison)), default=0)
    equal, drawn = _standings(comparison, count, kind)
    if not equal:
        return ["No merge gave a result."]
    what = f"average {comparison.tasks[0].metric}" if tasks_alike(comparison) else "share of the single models' metrics"
    best, over = _best(equal), _best(drawn)
    sentence = f"With {count} models, {best} has the best {what} at equal preference ({max(equal.values()):.4f})"
    if over:
        who = " and" if over == best else f", and {over}"
        preferred = f"over {len(comparison.preferences[count]) - 1} preferences"
        sentence += f"{who} the best weighted sum {preferred} ({max(drawn.values()):.4f} on average)"
    return [f"{sentence}.", *_of_map(comparison, equal, drawn, kind)]


def _of_map(comparison: Comparison, equal: dict[str, float], drawn: dict[str, float], kind: Kind) -> list[str]:
    """Where MAP is not first, its places; and for how many numbers of models its weighted sum is the best."""
    sentences = []
    places = [_place(equal, "at equal preference"), _place(drawn, "over preferences")]
    said = [place for place in places if place]
    if said:
        sentences.append(f"Of {len(equal)} merges, map comes {' and '.join(said)}.")
    ranked = [_standings(comparison, count, kind)[1] for count in counts(comparison)]
    entered = [standing for standing in ranked if "map" in standing]
    if len(entered) > 1:
        first = sum(standing["map"] == max(standing.values()) for standing in entered)
        share = {0: "none", len(entered): "each"}.get(first, first)
        sentences.append(f"map's weighted sum is the best for {share} of {len(entered)} numbers of models.")
    return sentences


def _place(standing: dict[str, float], where: str) -> str:
    own, best = standing.get("map", np.nan), max(standing.values(), default=np.nan)
    if not own < best:
        return ""
    return f"{_ordinal(1 + sum(value > own for value in standing.values()))} {where} ({best - own:.4f} behind)"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _best(standing: dict[str, float]) -> str:
    """Who has the largest value; several where it is shared."""
    top = max(standing.values(), default=np.nan)
    return " and ".join(method for method, value in standing.items() if value == top)


def _standings(comparison: Comparison, count: int, kind: Kind) -> tuple[dict[str, float], dict[str, float]]:
    """Method to weighted sum at equal preference, and to the mean over the preferences drawn; merges alone."""
    equal, drawn = {}, {}
    for result in of_count(comparison, count):
        if not result.bound:
            sums_R = weighted_sums(comparison, result, kind)
            equal[result.method] = float(sums_R[0])
            if len(sums_R) > 1:
                drawn[result.method] = float(np.mean(sums_R[1:]))
    return tuple({m: v for m, v in found.items() if np.isfinite(v)} for found in (equal, drawn))  # type: ignore[return-value]


def _merges(comparison: Comparison) -> list[MethodResult]:
    return [result for result in comparison.results if result.chosen is not None and not result.bound]


def _methods(comparison: Comparison) -> list[dict[str, Any]]:
    """Name, whether it is an upper bound, whether it searched for a front; in the order of the methods."""
    found: dict[str, dict[str, Any]] = {}
    for result in comparison.results:
        entry = found.setdefault(result.method, {"name": result.method, "bound": False, "search": False})
        entry["bound"] |= result.bound
        entry["search"] |= result.front is not None
    return list(found.values())


def _heat(comparison: Comparison, count: int, kind: Kind) -> dict[str, Any]:
    """What all methods gave for one number of models."""
    results, measures = of_count(comparison, count), measures_table(comparison, count, kind)
    places = {entry["name"]: index for index, entry in enumerate(_methods(comparison))}
    own_T = comparison.own.get((count, kind))
    return {
        "tasks": results[0].tasks if results else [],
        "own": own_T if own_T is not None and results else [],
        "results": [
            {
                "method": places[result.method],
                "equal": measured(result.chosen, kind)[0],
                "average": weighted_sums(comparison, result, kind)[0],
                "points": points_of(result, kind),
                "predicted": _predicted(result),
            }
            for result in results
            if result.chosen is not None
        ],
        "measures": {
            "columns": list(measures.columns[1:]),
            "rows": [[places[method], *values] for method, *values in measures.itertuples(index=False, name=None)],
        },
    }


def _predicted(result: MethodResult) -> np.ndarray:
    """The front as the surrogates see it, [P, T]; no row where it was measured throughout."""
    if result.front is None:
        return np.empty((0, len(result.tasks)))
    predicted_PT = result.front.predicted_RT
    return predicted_PT[np.isfinite(predicted_PT).all(axis=1)]


def _left_out(comparison: Comparison) -> list[dict[str, Any]]:
    """Each method and reason once, with the numbers of models that it holds for."""
    missing = left_out(comparison).groupby(["method", "reason"], sort=False)["models"].apply(list)
    return [
        {"method": method, "models": models, "reason": reason}
        for (method, reason), models in zip(missing.index, missing, strict=True)
    ]
