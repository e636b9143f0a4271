"""A suite's results as one markdown page."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from benchmarks.tables import RESULTS, markdown
from mergecore.config import StudyConfig


def write_suite(
    config: StudyConfig, description: str, single: dict[str, np.ndarray], fronts: list[dict[str, Any]]
) -> None:
    """Print both tables and keep them as ``results/suite_<name>.md``."""
    tasks = [task.name for task in config.tasks]
    metric = config.tasks[0].metric
    rows = [
        {"model": name, **{task: f"{value:.3f}" for task, value in zip(tasks, values, strict=True)}}
        for name, values in single.items()
    ]
    columns = [{"measure": name, **{f"N = {row['N']}": _cell(row[name]) for row in fronts}} for name in fronts[0]]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    text = "\n".join(
        [
            f"# suite_{config.name}",
            "",
            f"{description[0].upper()}{description[1:]}. Made by `python -m benchmarks.suites run {config.name}` on "
            f"{machine}.",
            "",
            f"## Single models on every task: {metric} on the test split",
            "",
            markdown(rows),
            "",
            "## Plain MAP, with the paper's number of samples",
            "",
            "Coefficients are chosen on validation data. *Preferred points*: 20 preference vectors, each served by the "
            "point that the surrogates prefer, its real metrics on the test split as shares of the single models', "
            "weighted by the preference. The hypervolume is that of the verified points, on validation, against the "
            "worst single model on each task.",
            "",
            markdown([column for column in columns if column["measure"] != "N"]),
            "",
        ]
    )
    print(text, flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"suite_{config.name}.md").write_text(text)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
