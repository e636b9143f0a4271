"""Records of runs and comparisons for tests, small and of every shape."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import pandas as pd

from mergecore.comparison.methods import Comparison, MethodResult, Points
from mergecore.pareto_moe.rays import rays
from mergecore.run_record import EVALUATION_FACTS, RunRecord, TaskInfo, coefficient_columns, front_columns
from mergecore.search import SEARCHES, Objectives

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


def nested_record(models: Sequence[str] = ("m", "n"), *, order: str = "given", maximise: bool = True) -> RunRecord:
    """A record of nested MAP over so many models, each with a task of its name, with coarse fronts on the way."""
    N = len(models)
    goals = Objectives(
        tuple(f"task {name}" for name in models),
        (maximise,) * N,
        (0.0,) * N,
        (1.0,) * N,
        tuple(range(N)),
        tuple(models),
    )
    cls = SEARCHES.get("nested_map")
    search = cls(cls.Options(order=order, samples=8), models=N, objectives=goals)
    pull_NN = np.eye(N) - 0.5 * np.roll(np.eye(N), 1, axis=1)
    with patch("mergecore.search.pairs.POPULATION", 12), patch("mergecore.search.pairs.GENERATIONS", 3):
        while len(asked := search.ask()):
            gains = 1 / (1 + np.exp(asked**2 - 2 * asked @ pull_NN))
            search.tell(asked, gains if maximise else 1 - gains)
    record = make_record(tasks=goals.names, models=models, maximise=maximise)
    record.summary |= {"method": "nested_map", "rounds": search.rounds}
    return record


def routed_record(
    tasks: Sequence[str] = ("A", "B"),
    models: Sequence[str] = ("m", "n"),
    *,
    modules: int = 4,
    maximise: bool = True,
    analysed: bool = True,
) -> RunRecord:
    """A record of PWE-MoE whose front is every ray but the second, which was measured; ``analysed`` adds distances."""
    rng = np.random.default_rng(0)
    N, T = len(models), len(tasks)
    record = make_record(tasks=tasks, models=tasks, surrogates=False, maximise=maximise)
    rays_RT = rays(7, T, seed=0)
    names, columns = list(tasks), coefficient_columns(tasks)
    metrics_RT = 0.5 + 0.4 * rays_RT * (1 if maximise else -1) + 0.01 * rng.random(rays_RT.shape)
    record.evaluations = pd.DataFrame(np.hstack([rays_RT, metrics_RT]), columns=[*columns, *names]).assign(
        round=0, seconds=0.25, worker="w", fingerprint="f", status="ok"
    )
    found = {f"c.{name}": rays_RT[:, t] for t, name in enumerate(names)}
    for kind, lost in (("predicted", np.nan), ("real", 0.0), ("test", 0.02)):
        found |= {f"{kind}.{name}": metrics_RT[:, t] - lost for t, name in enumerate(names)}
    record.front = pd.DataFrame(found).drop(index=1).reset_index(drop=True)
    shown = ["equal", *names]
    depth = np.arange(modules)
    record.summary |= {
        "method": "pwe_moe",
        "pareto_moe": {
            "modules": [f"blocks.{g}.mlp" for g in depth],
            "models": list(models),
            "tasks": names,
            "scaling": 0.3,
            "routing": {name: (0.3 + 0.2 * rng.standard_normal((modules, N))).tolist() for name in shown},
            "dissimilarity": {
                "pairs": N * (N - 1) // 2,
                "kinds": {
                    kind: {
                        "blocks": depth.tolist(),
                        "modules": [f"blocks.{g}.{kind}" for g in depth],
                        "cosine": [None, *(level + 0.02 * rng.random(modules - 1)).tolist()],
                        "distance": (1e-3 * (level + 0.1 * rng.random(modules))).tolist(),
                    }
                    for kind, level in (("attention", 0.8), ("mlp", 0.9))
                },
            }
            if analysed
            else None,
            "table": [
                {"preference": name, **dict(zip(names, rng.random(T).tolist(), strict=True))} for name in shown
            ],
            "training": {
                "scalarisation": "ls", "steps": 4000, "parameters": 264, "total_parameters": 226_790_000,
                "batch_size": 16, "seconds": 151.0, "peak_bytes": 2_800_000_000, "device": "cpu", "fallbacks": 0,
                "loss_steps": np.linspace(0, 3999, 60).astype(int).tolist(),
                "losses": {name: (np.linspace(1, 0.3, 60) + 0.1 * rng.random(60)).tolist() for name in names},
            },
        },
    }  # fmt: skip
    return record


def make_comparison(
    *,
    tasks: Sequence[str] = ("A", "B", "C"),
    models: Sequence[str] = ("m", "n", "o"),
    searches: Sequence[str] = ("map", "map + ties"),
    merges: Sequence[str] = ("soup", "ties"),
    bounds: Sequence[str] = ("single",),
    missing: Sequence[str] = ("slerp",),
    counts: Sequence[int] = (2, 3),
    preferences: int = 4,
    front: int = 9,
    metric: str = "accuracy",
    maximise: bool = True,
    held_out: bool = True,
    seed: int = 0,
) -> Comparison:
    """Random numbers for every method and number of models; with as many tasks as models the first N merge N tasks.

    Of a search's ``front`` points every third is measured. ``missing`` methods are left out with a reason.
    """
    rng = np.random.default_rng(seed)
    infos = [TaskInfo(name=name, metric=metric, maximise=maximise, lower=0.0, upper=1.0) for name in tasks]
    comparison = Comparison(name="study", models=list(models), tasks=infos, config={"name": "study"})
    comparison.summary = {"timings": {"total": 4.0}}

    def points(rows: int, columns: int, T: int, *, every: int = 1, predicted: bool = False) -> Points:
        level_RT = 0.4 + 0.4 * rng.random((rows, T))
        real_RT = np.where(np.arange(rows)[:, None] % every == 0, level_RT, np.nan)
        return Points(
            coefficients=rng.random((rows, columns)),
            predicted_RT=level_RT + 0.01 if predicted else np.full((rows, T), np.nan),
            real_RT=real_RT,
            test_RT=real_RT - 0.02 if held_out else np.full((rows, T), np.nan),
        )

    for count in counts:
        indices = tuple(range(count if len(tasks) == len(models) else len(tasks)))
        T = len(indices)
        comparison.preferences[count] = np.vstack([np.full(T, 1 / T), rng.dirichlet(np.ones(T), size=preferences)])
        for kind in ("real", "test"):
            comparison.worst[count, kind], comparison.own[count, kind] = np.full(T, 0.1), np.full(T, 0.85)
        for method in (*searches, *merges, *bounds):
            comparison.results.append(
                MethodResult(
                    method=method,
                    models=count,
                    bound=method in bounds,
                    columns=tuple(models[:count]),
                    tasks=indices,
                    chosen=points(1 + preferences, count, T, predicted=method in searches),
                    front=points(front, count, T, every=3, predicted=True) if method in searches else None,
                    evaluations=10 * T,
                    seconds=2.5,
                    build_seconds=0.5 if method in searches else float("nan"),
                )
            )
        reason = "SLERP merges two models."
        comparison.results += [MethodResult(method=name, models=count, reason=reason) for name in missing]
    return comparison
