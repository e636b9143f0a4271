"""Every merge method on a suite, as the papers' tables: the flow `compare`, and its tables as a page of results."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS
from flows.terminal import running
from mergecore.comparison.config import CompareConfig
from mergecore.config_file import parse_config

FURTHER: tuple[dict[str, Any], ...] = tuple(
    {"method": name} for name in ("fisher", "regmean", "adamerging_task", "adamerging_layer")
)
"""Beside the methods that are compared when a study does not say."""


def compare(
    config: dict[str, Any],
    *,
    description: str,
    findings: str,
    multitask: dict[int, Path],
    transforms_for: tuple[int, ...],
    adamerging_for: tuple[int, ...] | None = None,
) -> None:
    """Compare on the suite and write ``benchmarks/results/compare_<name>.md`` with a picture.

    Args:
        config: of the suite.
        description: of the suite, which opens the page.
        findings: what there is to see, which follows it.
        multitask: number of models to the model fine-tuned on all their tasks at once.
        transforms_for: numbers of models for which MAP is put over transforms.
        adamerging_for: numbers of models for which AdaMerging is compared; default: all.
    """
    methods = [method.model_dump() for method in CompareConfig().methods] + [dict(method) for method in FURTHER]
    for method in methods:
        if method.get("transform", "none") != "none":
            method["models"] = list(transforms_for)
        if method["method"].startswith("adamerging") and adamerging_for is not None:
            method["models"] = list(adamerging_for)
    references = [{"source": str(folder), "models": [count]} for count, folder in multitask.items()]
    chosen = {"methods": methods, "references": references}
    _write(config, chosen, "compare", description=description, findings=findings)


def compare_routers(
    config: dict[str, Any],
    *,
    description: str,
    findings: str,
    counts: tuple[int, ...],
    steps: int,
    full_steps: int,
    full_rate: float,
    preferences: int,
) -> None:
    """Compare PWE-MoE with what it is compared with in its paper, and write ``benchmarks/results/routers_<name>.md``.

    Args:
        config: of the suite; every data set has a split "train".
        description, findings: as for `compare`.
        counts: numbers of models.
        steps: of a training of routers; the paper has 4000.
        full_steps: of a training of all weights.
        full_rate: its learning rate, the suite's own for fine-tuning.
        preferences: drawn beside the equal one.
    """
    methods: list[dict[str, Any]] = [
        {"method": "pwe_moe", "label": f"PWE-MoE, {name.upper()}, {modules}", "search": search | {"steps": steps}}
        for name in ("ls", "epo")
        for modules in ("mlp", "attn+mlp")
        for search in ({"scalarisation": name, "modules": modules},)
    ]
    last = {"scalarisation": "ls", "modules": "attn+mlp", "steps": steps, "scaling": round(1 / max(counts), 3)}
    label = f"PWE-MoE, LS, attn+mlp, λ = {last['scaling']}"
    methods.append({"method": "pwe_moe", "label": label, "search": last, "models": [max(counts)]})
    methods += [{"method": name} for name in ("map", "task_arithmetic", "preference_weights", "ties", "soup")]
    full = {"steps": full_steps, "learning_rate": full_rate}
    methods += [{"method": name, "options": full} for name in ("ls", "epo", "mgda")]
    methods += [{"method": "base"}, {"method": "single"}]
    tasks = [{**task, "dataset": task["dataset"] | {"train_split": "train"}} for task in config["tasks"]]
    chosen = {"methods": methods, "counts": list(counts), "preferences": preferences}
    _write(config | {"tasks": tasks}, chosen, "routers", description=description, findings=findings)


def _write(config: dict[str, Any], chosen: dict[str, Any], kind: str, *, description: str, findings: str) -> None:
    """Run the comparison, and write its tables and the picture of two models as a page of results."""
    study = parse_config(config | {"compare": chosen})
    out = Path("runs") / f"{study.name}-{kind}"
    with running(out):
        from flows.compare import compare_flow  # after `running` has quietened prefect

        compare_flow(study, str(out))
    picture = RESULTS / f"{kind}_{study.name}.png"
    picture.write_bytes((out / "front-2.png").read_bytes())
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    head = [
        f"# {kind}_{study.name}",
        f"{description[0].upper()}{description[1:]}.",
        f"Made by `python -m benchmarks.suites {kind} {study.name}` on {machine}.",
        f"## Findings\n\n{findings}",
        f"![Fronts and methods for two models]({picture.name})",
        "",
    ]
    (RESULTS / f"{kind}_{study.name}.md").write_text("\n\n".join(head) + (out / "tables.md").read_text())
