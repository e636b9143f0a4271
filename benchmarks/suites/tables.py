"""A suite's results as one markdown page."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.tables import RESULTS, markdown
from mergecore.config import StudyConfig


@dataclass(frozen=True)
class SuiteFront:
    """Plain MAP on the first N tasks.

    Attributes:
        tasks: their names.
        r2_N: of each task's surrogate, on fresh evaluations.
        measures: name to value, as the table shows them.
    """

    tasks: tuple[str, ...]
    r2_N: np.ndarray
    measures: dict[str, object]


def write_suite(
    config: StudyConfig, description: str, single: dict[str, np.ndarray], fronts: Sequence[SuiteFront], *, note: str
) -> None:
    """Print the tables and keep them as ``results/suite_<name>.md``.

    Args:
        config: the whole suite.
        description: of its models.
        single: row name to metrics [N] on the test split.
        fronts: one for each number of tasks.
        note: what the measures mean.
    """
    tasks = [task.name for task in config.tasks]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    cross = [
        {"model": name, **{task: f"{value:.3f}" for task, value in zip(tasks, metrics, strict=True)}}
        for name, metrics in single.items()
    ]
    r2 = [
        {"task": task, **{_column(front): f"{front.r2_N[t]:.3f}" if t < len(front.tasks) else "" for front in fronts}}
        for t, task in enumerate(tasks)
    ]
    r2.append({"task": "mean", **{_column(front): f"{front.r2_N.mean():.3f}" for front in fronts}})
    measures = [
        {"measure": name, **{_column(front): front.measures[name] for front in fronts}} for name in fronts[0].measures
    ]
    text = "\n\n".join(
        [
            f"# suite_{config.name}",
            f"{description[0].upper()}{description[1:]}.",
            f"Made by `python -m benchmarks.suites run {config.name}` on {machine}.",
            f"## Single models on every task: {config.tasks[0].metric} on the test split",
            markdown(cross),
            "## Plain MAP",
            note,
            markdown(measures),
            "## R² of each surrogate",
            markdown(r2),
        ]
    )
    print(text, flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"suite_{config.name}.md").write_text(text + "\n")


def _column(front: SuiteFront) -> str:
    return f"N = {len(front.tasks)}"
