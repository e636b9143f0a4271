"""What logging costs in a study of 10,000 evaluations in 200 rounds, and whether its servers stay usable.

Bayesian MAP over two tiny checkpoints on two tasks whose metrics are functions of the coefficients, 200 rounds of 25
candidates: what is timed is Prefect, MLflow, the ledger and the run's files, not evaluations. The share is against a
run whose evaluations take 0.1 s each on two workers. Target: logging at most 5 % of it.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables import write_table

ROUNDS, BATCH, TASKS = 200, 25, 2
SECONDS, WORKERS = 0.1, 2
LOOKS = 10

METRICS = """
import math


def measure(candidate, *, task):
    x, y = candidate.coefficients
    return 1 / (1 + math.exp(y * y - 1.5 * x)) if task == "a" else 1 / (1 + math.exp(x * x - 1.5 * y))
"""


def make_study(folder: Path) -> dict[str, Any]:
    """Two tiny models, and the module with their metrics."""
    import torch
    from safetensors.torch import save_file

    (folder / "large_metrics.py").write_text(METRICS)
    sources = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        sources.append(str(folder / f"{seed}.safetensors"))
        save_file({"w": torch.randn(4, 4, generator=generator)}, sources[-1])
    function = "large_metrics:measure"
    return {
        "name": "large",
        "base": sources[0],
        "models": [{"name": f"m{i}", "source": source} for i, source in enumerate(sources[1:])],
        "tasks": [{"name": t, "evaluator": "python", "args": {"function": function, "task": t}} for t in "ab"],
        "search": {
            "method": "bayesian_map",
            "samples": ROUNDS * BATCH,
            "initial": BATCH,
            "batch": BATCH,
            "acquisition": "angular_bins",
        },
        "execution": {"workers": WORKERS},
    }


def timed(owner: type, name: str, spent: dict[str, float]) -> None:
    """Add the time of a method's calls to ``spent``."""
    inner: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun

    setattr(owner, name, call)


def look(ask: Callable[[], Any]) -> float:
    """Median seconds of a request."""
    times = []
    for _ in range(LOOKS):
        begun = time.perf_counter()
        ask()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main() -> None:
    """Run the study, print and store the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ |= {"MERGECORE_HOME": str(folder / "home"), "PREFECT_HOME": str(folder / "prefect")}
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        import sys

        sys.path.insert(0, str(folder))
        from flows.terminal import running

        with running(folder / "out"):
            from mlflow import MlflowClient
            from prefect.client.orchestration import get_client

            from flows.bayesian_map import bayesian_map_flow
            from mergecore.config_file import parse_config
            from tasks.tracking import Tracker

            spent: dict[str, float] = {}
            for name in ("log_child", "log_step", "log_result"):
                timed(Tracker, name, spent)
            begun = time.perf_counter()
            bayesian_map_flow(parse_config(make_study(folder)), str(folder / "out"))
            seconds = time.perf_counter() - begun
            summary = json.loads((folder / "out" / "summary.json").read_text())
            client, run = MlflowClient(summary["tracking"]["uri"]), summary["tracking"]["run_id"]
            experiment = client.get_run(run).info.experiment_id
            condition = f"tags.`mlflow.parentRunId` = '{run}'"
            children = client.search_runs([experiment], condition, max_results=1000)
            with get_client(sync_client=True) as prefect:
                stages = look(lambda: prefect.read_task_runs(limit=200))
            rows = [
                {
                    "evaluations": summary["evaluations"]["pairs"],
                    "children": len(children),
                    "seconds of the run": f"{seconds:.0f}",
                    "of it in MLflow": f"{sum(spent.values()):.0f}",
                    "share of a run with real evaluations": f"{sum(spent.values()) / _real(seconds):.3f}",
                    "list of children in MLflow, s": f"{look(lambda: client.search_runs([experiment], condition)):.2f}",
                    "list of tasks in Prefect, s": f"{stages:.2f}",
                    "report.html, MB": f"{(folder / 'out' / 'report.html').stat().st_size / 1e6:.1f}",
                }
            ]
    note = (__doc__ or "").split("\n\n", 1)[1].strip().replace("\n", " ")
    write_table("large_study", rows, note=note)


def _real(seconds: float) -> float:
    """The run's seconds if evaluations took `SECONDS`."""
    return seconds + ROUNDS * BATCH * TASKS * SECONDS / WORKERS


if __name__ == "__main__":
    main()
