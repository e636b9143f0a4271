"""Stage: what a pair of nested MAP found, as a task and an MLflow child run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.pictures.tree import side_names
from mergecore.pictures.tree_panels import pair_figure

if TYPE_CHECKING:
    from tasks.run import Run


@task(name="merge", task_run_name="merge {merge[name]}", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def merge_pair(run: Run, merge: Mapping[str, Any]) -> None:
    """One merge of two: its samples, surrogates, front, chosen point and picture.

    Args:
        run: in progress.
        merge: a record of `mergecore.search.pairs.record`.
    """
    sides, fits, chosen = side_names(merge), merge["surrogates"], merge["chosen"]
    tasks = [name for side in merge["sides"] for name in side["tasks"]]
    coefficients, groups = [f"c.{name}" for name in sides], [f"metric.{name}" for name in sides]
    samples = _table(merge["samples"], {"coefficients": coefficients, "metrics": tasks})
    front = _table(merge["front"], {"coefficients": coefficients, "groups": groups})
    front["chosen"] = np.arange(len(front)) == chosen
    numbers = {f"{kind}.{name}": fits[name][kind] for name in tasks for kind in ("held_out_r2", "press_r2")}
    numbers |= dict(zip(coefficients, merge["coefficients"], strict=True))
    numbers |= dict(zip(groups, merge["front"]["groups"][chosen], strict=True))
    numbers |= {f"flat.{model}": value for model, value in merge["flat"].items()}
    with run.stage("tracking"):
        run.tracker.log_child(
            f"pair {merge['name']}",
            {"evaluations": samples, "front": front},
            series=tasks,
            numbers={name: value for name, value in numbers.items() if value is not None}
            | {"evaluations": merge["evaluations"]},
            params={"level": merge["level"], "first": sides[0], "second": sides[1]},
            pictures={"front": pair_figure(merge)},
        )


def _table(values: Mapping[str, Any], columns: Mapping[str, list[str]]) -> pd.DataFrame:
    """Some matrices of a record side by side."""
    parts = [pd.DataFrame(np.array(values[key], dtype=np.float64), columns=names) for key, names in columns.items()]
    return pd.concat(parts, axis=1)
