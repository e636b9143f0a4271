"""Run records for tests, small and of every shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergecore.run_folder import EVALUATION_FACTS, RunRecord, TaskInfo, coefficient_columns, front_columns

HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "a \"quoted\" 'name' & %{x} $x^2$, {{data}}",
    "../../etc/passwd",
    "🦊 名前 עברית \u2028",
    "x" * 300,
)


def make_record(
    *,
    tasks: Sequence[str] = ("A", "B"),
    models: Sequence[str] = ("m", "n"),
    points: int = 12,
    verified: int = 4,
    metric: str = "accuracy",
    maximise: bool = True,
    surrogates: bool = True,
    seed: int = 0,
) -> RunRecord:
    """A record with ``points`` random points of which ``verified`` are measured, the base and every single model."""
    rng = np.random.default_rng(seed)
    N, T = len(models), len(tasks)
    infos = [TaskInfo(name=name, metric=metric, maximise=maximise, lower=0.0, upper=1.0) for name in tasks]
    coefficients_KN = np.concatenate([np.zeros((1, N)), np.eye(N), rng.random((10, N))])
    metrics_KT = rng.random((len(coefficients_KN), T))
    evaluations = pd.DataFrame(
        np.hstack([coefficients_KN, metrics_KT]), columns=[*coefficient_columns(models), *tasks]
    ).assign(round=np.arange(len(coefficients_KN)) // 5, seconds=0.25, worker="w", fingerprint="f", status="ok")
    predicted_PT = rng.random((points, T))
    real_PT = np.where(np.arange(points)[:, None] < verified, predicted_PT + 0.01, np.nan)
    front = pd.DataFrame(
        np.hstack([rng.random((points, N)), predicted_PT, real_PT, real_PT - 0.02]),
        columns=coefficient_columns(models)
        + [c for kind in ("predicted", "real", "test") for c in front_columns(kind, infos)],
    )
    fit = {
        "A": np.eye(N).tolist(), "b": [0.1] * N, "e": 0.2, "link": "sigmoid", "lower": 0.0, "upper": 1.0,
        "held_out_r2": 0.9, "press_r2": 0.8, "samples": 10, "excluded": 1, "warnings": ["10 samples for 6 parameters."],
        "observed": [0.1, 0.2], "out_of_fold": [0.11, 0.19],
    }  # fmt: skip
    return RunRecord(
        name="study",
        models=list(models),
        tasks=infos,
        front=front,
        evaluations=evaluations[[*coefficient_columns(models), *tasks, *EVALUATION_FACTS]],
        surrogates={name: dict(fit) for name in tasks} if surrogates else {},
        summary={
            "diagnosis": {"sentence": "The tasks compete.", "verdict": "trade-off"},
            "hypervolume": {"real": 0.25, "predicted": 0.5},
            "timings": {"evaluate": 2.0, "front": 1.0, "total": 4.0},
        },
        config={"name": "study", "search": {"method": "map"}},
    )
