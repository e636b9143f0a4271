"""The folder that a comparison of methods leaves, written whole or not at all.

======================  ==================================================================================
``config.yaml``         the resolved configuration, versions, fingerprints
``points.csv``          every merged model: what it is for, coefficients, predicted, real and held-out metrics
``preferences.csv``     the preference-weighted sum of each method, mean and deviation, by number of models
``accuracy.csv``        each task's metric at equal preference
``measures.csv``        hypervolume, GD, IGD, IGD+, win rates, evaluations, seconds
``tables.md``           these tables to read, and what was left out
``front-<N>.png``       the fronts for N models
``report.html``         the page of :mod:`mergecore.pages.comparison`
``summary.json``        figures of the whole comparison
======================  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mergecore.comparison.methods import Comparison
from mergecore.comparison.tables import (
    KINDS,
    accuracy_table,
    counts,
    kind_of_data,
    left_out,
    measures_table,
    points_table,
    preference_table,
    tasks_alike,
    wide_preferences,
)
from mergecore.files import atomic_write, check_writable
from mergecore.markdown import table
from mergecore.pages.comparison import render_comparison
from mergecore.plain import to_json, to_yaml

FILES = (
    *("config.yaml", "preferences.csv", "accuracy.csv", "measures.csv", "points.csv"),
    *("tables.md", "report.html", "summary.json"),
)
"""What a finished comparison leaves, beside its pictures."""


def comparison_tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """File name without its end to table, all numbers of models together."""
    by_count = counts(comparison)
    return {
        "preferences": preference_table(comparison),
        "accuracy": _stacked({count: accuracy_table(comparison, count) for count in by_count}),
        "measures": _stacked({count: measures_table(comparison, count) for count in by_count}),
        "points": points_table(comparison),
    }


def write_comparison(folder: Path, comparison: Comparison, pictures: Mapping[str, bytes]) -> None:
    """Write the files; everything is rendered before the first one is touched.

    Args:
        folder: where to; created when it does not exist.
        comparison: what was found.
        pictures: file name without its end to PNG.

    Raises:
        InputError: nothing can be written to ``folder``.
    """
    files: dict[str, str | bytes] = {"config.yaml": to_yaml(comparison.config)}
    files |= {f"{name}.csv": found.to_csv(index=False) for name, found in comparison_tables(comparison).items()}
    files |= {"tables.md": tables_page(comparison), "report.html": render_comparison(comparison)}
    files |= {f"{name}.png": picture for name, picture in pictures.items()}
    files["summary.json"] = to_json({"name": comparison.name, "models": comparison.models, **comparison.summary})
    check_writable(folder)
    for name, content in files.items():
        atomic_write(folder / name, content)


def tables_page(comparison: Comparison) -> str:
    """Every table as markdown."""
    kind, missing = kind_of_data(comparison), left_out(comparison)
    weighted = "sums of the metrics" if tasks_alike(comparison) else "sums of the shares of the single models' metrics"
    parts = [
        f"Measured on {KINDS[kind]}; coefficients are chosen on the data of the search.",
        f"## Preference-weighted {weighted}, by number of models\n",
        _markdown(wide_preferences(preference_table(comparison))),
    ]
    for count in counts(comparison):
        parts += [f"## {count} models at equal preference\n", _markdown(accuracy_table(comparison, count))]
        parts += [f"## {count} models: measures\n", _markdown(measures_table(comparison, count))]
    if len(missing):
        parts += ["## Left out\n", _markdown(missing)]
    return "\n".join(parts)


def _stacked(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """One table with the number of models as its first column."""
    parts = [found.assign(models=count) for count, found in tables.items() if len(found)]
    if not parts:
        return pd.DataFrame(columns=["models", "method"])
    stacked = pd.concat(parts, ignore_index=True)
    return stacked[["models", *stacked.columns.drop("models")]]


def _markdown(found: pd.DataFrame) -> str:
    return table([str(column) for column in found.columns], found.itertuples(index=False, name=None))
