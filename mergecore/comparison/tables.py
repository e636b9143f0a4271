"""The tables of a comparison, as data frames, and as markdown.

Numbers are those of held-out data where the study has any, otherwise of the data of the search.

Shape suffixes: R preferences, T tasks, P points.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from mergecore.comparison.methods import Comparison, MethodResult, Points
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.indicators import (
    generational_distance,
    hypervolume,
    igd_plus,
    inverted_generational_distance,
    win_rate,
)

Kind = Literal["real", "test"]
KINDS = {"real": "data of the search", "test": "held-out data"}


def kind_of_data(comparison: Comparison) -> Kind:
    """Which measurements are reported."""
    measured = [result.chosen.test_RT for result in comparison.results if result.chosen is not None]
    return "test" if measured and all(np.isfinite(test_RT).any() for test_RT in measured) else "real"


def measured(points: Points, kind: Kind) -> np.ndarray:
    """Metrics [R, T] of one kind."""
    return points.test_RT if kind == "test" else points.real_RT


def tasks_alike(comparison: Comparison) -> bool:
    """Whether metrics add up as they are: all of one kind, and more is better."""
    return len({task.metric for task in comparison.tasks}) == 1 and all(task.maximise for task in comparison.tasks)


def preference_table(comparison: Comparison, kind: Kind | None = None) -> pd.DataFrame:
    """The preference-weighted sums (MAP, Table 4): one row a method, columns ``<N> mean``, ``<N> std``.

    Where metrics are of different kinds, or less is better, each counts as its share of the single models' own metric
    (an inverse ratio where less is better), so that 1 is the level of the fine-tuned models.

    Args:
        comparison: what was found.
        kind: of measurement; default: `kind_of_data`.
    """
    kind = kind or kind_of_data(comparison)
    rows: dict[str, dict[str, object]] = {}
    for result in comparison.results:
        row = rows.setdefault(result.method, {"method": result.method})
        if result.chosen is None:
            continue
        sums_R = weighted_sums(comparison, result, kind)[1:]
        row[f"{result.models} mean"] = float(np.mean(sums_R))
        row[f"{result.models} std"] = float(np.std(sums_R))
    columns = [f"{count} {part}" for count in counts(comparison) for part in ("mean", "std")]
    return pd.DataFrame(list(rows.values()), columns=["method", *columns])


def weighted_sums(comparison: Comparison, result: MethodResult, kind: Kind) -> np.ndarray:
    """Σ_t r_t M_t of the point chosen for each preference, [R]; the equal preference first."""
    assert result.chosen is not None
    metrics_RT = measured(result.chosen, kind)
    if not tasks_alike(comparison):
        metrics_RT = shares(comparison, result, metrics_RT, kind)
    return np.asarray((comparison.preferences[result.models] * metrics_RT).sum(axis=1))


def shares(comparison: Comparison, result: MethodResult, metrics_RT: np.ndarray, kind: Kind) -> np.ndarray:
    """Metrics as shares of the fine-tuned models' own; inverse where less is better."""
    own_T = comparison.own[result.models, kind]
    maximise = [comparison.tasks[t].maximise for t in result.tasks]
    return np.where(maximise, metrics_RT / own_T, own_T / metrics_RT)


def accuracy_table(comparison: Comparison, count: int, kind: Kind | None = None) -> pd.DataFrame:
    """Each task's metric at equal preference (PWE-MoE, Tables 2 to 4): one row a method, then the average."""
    kind = kind or kind_of_data(comparison)
    rows = []
    for result in of_count(comparison, count):
        assert result.chosen is not None
        metrics_T = measured(result.chosen, kind)[0]
        names = [_column(comparison.tasks[t].name) for t in result.tasks]
        row: dict[str, object] = {"method": result.method, **dict(zip(names, metrics_T.tolist(), strict=True))}
        rows.append(row | {"average": weighted_sums(comparison, result, kind)[0]})
    return pd.DataFrame(rows)


def measures_table(comparison: Comparison, count: int, kind: Kind | None = None, *, seed: int = 0) -> pd.DataFrame:
    """Measures of every method's points, one row a method that merges.

    The points of a method are its verified front and its choices for all preferences. The hypervolume's reference
    point is the worst of the single models on each task, its share that of all methods' points together; GD, IGD and
    IGD+ are distances to the non-dominated points of all methods together; win rates are against the points of all
    other methods, and against MAP's where it is compared.
    """
    kind = kind or kind_of_data(comparison)
    merges = [result for result in of_count(comparison, count) if not result.bound]
    results = [result for result in merges if len(points_of(result, kind))]  # no measures of what failed on some task
    points = [points_of(result, kind) for result in results]
    if not points:
        return pd.DataFrame()
    maximise = [comparison.tasks[t].maximise for t in results[0].tasks]
    together = np.concatenate(points)
    best = together[non_dominated(together, maximise=maximise)]
    by_map = next((own for own, result in zip(points, results, strict=True) if result.method == "map"), None)
    reference_T = comparison.worst[count, kind]
    whole = hypervolume(best, reference_T=reference_T, maximise=maximise)
    rows = []
    for i, (result, own) in enumerate(zip(results, points, strict=True)):
        others = [other for j, other in enumerate(points) if j != i]

        def beats(other: np.ndarray, own: np.ndarray = own) -> float:
            return win_rate(own, other, maximise=maximise, generator=np.random.default_rng(seed))

        volume = hypervolume(own, reference_T=reference_T, maximise=maximise)
        rows.append(
            {
                "method": result.method,
                "points": len(own),
                "hypervolume": volume,
                "share": volume / whole if whole > 0 else np.nan,
                "GD": generational_distance(own, best),
                "IGD": inverted_generational_distance(own, best),
                "IGD+": igd_plus(own, best, maximise=maximise),
                "win rate": beats(np.concatenate(others)) if others else np.nan,
                "win rate over map": np.nan if by_map is None or result.method == "map" else beats(by_map),
                "evaluations": result.evaluations,
                "evaluation seconds": result.seconds,
                "build seconds": result.build_seconds,
            }
        )
    return pd.DataFrame(rows)


def left_out(comparison: Comparison) -> pd.DataFrame:
    """Methods that gave nothing, for which number of models and why."""
    missing = [result for result in comparison.results if result.chosen is None]
    return pd.DataFrame(
        [{"method": result.method, "models": result.models, "reason": result.reason} for result in missing],
        columns=["method", "models", "reason"],
    )


def points_table(comparison: Comparison) -> pd.DataFrame:
    """Every measured point: what it is for, its coefficients, its metrics."""
    rows: list[dict[str, object]] = []
    for result in comparison.results:
        for use, points in (("preference", result.chosen), ("front", result.front)):
            if points is not None:
                rows += [_point_row(comparison, result, points, use, index) for index in range(len(points.real_RT))]
    columns = ["models", "method", "use", "number"]
    columns += [f"preference.{task.name}" for task in comparison.tasks]
    columns += sorted({name for row in rows for name in row if name.startswith("c.")})
    columns += [f"{kind}.{task.name}" for kind in ("predicted", "real", "test") for task in comparison.tasks]
    return pd.DataFrame(rows, columns=columns)


def counts(comparison: Comparison) -> list[int]:
    """The numbers of models that were compared."""
    return sorted({result.models for result in comparison.results})


def of_count(comparison: Comparison, count: int) -> list[MethodResult]:
    """The methods that gave something for so many models."""
    return [result for result in comparison.results if result.models == count and result.chosen is not None]


def points_of(result: MethodResult, kind: Kind) -> np.ndarray:
    """The different measured points of a method, [P, T]."""
    parts = [points for points in (result.front, result.chosen) if points is not None]
    metrics_PT = np.concatenate([measured(points, kind) for points in parts])
    return np.unique(metrics_PT[np.isfinite(metrics_PT).all(axis=1)], axis=0)


def wide_preferences(table: pd.DataFrame) -> pd.DataFrame:
    """`preference_table` with one text column ``mean ± std`` for each number of models."""
    numbers = [column.removesuffix(" mean") for column in table.columns if column.endswith(" mean")]
    wide = {"method": table["method"]}
    for number in numbers:
        cells = zip(table[f"{number} mean"], table[f"{number} std"], strict=True)
        wide[number] = pd.Series([f"{m:.4f} ± {s:.4f}" if np.isfinite(m) else "" for m, s in cells], dtype=object)
    return pd.DataFrame(wide)


def _column(task: str) -> str:
    """What a task's column is called beside the table's own."""
    return f"{task} (task)" if task in ("method", "models", "average") else task


def _point_row(comparison: Comparison, result: MethodResult, points: Points, use: str, index: int) -> dict[str, object]:
    names = [comparison.tasks[t].name for t in result.tasks]
    row: dict[str, object] = {"models": result.models, "method": result.method, "use": use, "number": index}
    if use == "preference":
        row |= {f"preference.{n}": r for n, r in zip(names, comparison.preferences[result.models][index], strict=True)}
    if points.coefficients.ndim == 2:
        row |= {f"c.{n}": c for n, c in zip(result.columns, points.coefficients[index], strict=True)}
    for kind, metrics_RT in (("predicted", points.predicted_RT), ("real", points.real_RT), ("test", points.test_RT)):
        row |= {f"{kind}.{n}": value for n, value in zip(names, metrics_RT[index], strict=True)}
    return row
