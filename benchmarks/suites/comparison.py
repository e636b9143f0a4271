"""Every merge method on a suite, as the papers' tables: the flow `compare`, and its tables as a page of results."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS
from flows.terminal import running
from mergecore.compare_config import CompareConfig
from mergecore.config import parse_config

DATA_DRIVEN = ("fisher", "regmean", "adamerging_task", "adamerging_layer")
"""Beside the methods that are compared when a study does not say."""
UNDER_TRANSFORMS = (2, 3)
"""Numbers of models for which MAP is put over transforms; for all models too."""


def compare(config: dict[str, Any], *, description: str, multitask: dict[int, Path]) -> None:
    """Compare on the suite and write ``benchmarks/results/compare_<name>.md``.

    Args:
        config: of the suite.
        description: of the suite, which opens the page.
        multitask: number of models to the model fine-tuned on all their tasks at once.
    """
    methods = [method.model_dump() for method in CompareConfig().methods] + [{"method": name} for name in DATA_DRIVEN]
    for method in methods:
        if method.get("transform", "none") != "none":
            method["models"] = [*UNDER_TRANSFORMS, len(config["models"])]
    references = [{"source": str(folder), "models": [count]} for count, folder in multitask.items()]
    study = parse_config(config | {"compare": {"methods": methods, "references": references}})
    out = Path("runs") / f"{study.name}-compare"
    with running(out):
        from flows.compare import compare_flow  # after `running` has quietened prefect

        compare_flow(study, str(out))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    head = [
        f"# compare_{study.name}",
        f"{description[0].upper()}{description[1:]}.",
        f"Made by `python -m benchmarks.suites compare {study.name}` on {machine}.",
        "",
    ]
    (RESULTS / f"compare_{study.name}.md").write_text("\n\n".join(head) + (out / "tables.md").read_text())
