"""What a suite shows: single models on every task, then plain MAP on 2, 3 and all tasks."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from benchmarks.measuring import Measurer
from benchmarks.suites.tables import write_suite
from mergecore.config import FrontConfig, StudyConfig, parse_config
from mergecore.files import home_folder
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.indicators import hypervolume
from mergecore.sampling import sample
from mergecore.study import Study, new_search, prepare
from mergecore.surrogates.quadratic import r_squared

FRESH = 30
"""Evaluations that no surrogate has seen, for the held-out R²."""
VERIFIED = 10
PREFERENCES = 20


def run(config: dict[str, Any], *, description: str) -> None:
    """Measure a suite and write ``benchmarks/results/suite_<name>.md``."""
    models = len(config["models"])
    everything = parse_config(config)
    study = prepare(everything, home_folder())
    single = single_models(study)
    fronts = [front_of(_first(config, count), single) for count in sorted({2, 3, models})]
    write_suite(everything, description, single, fronts)


def single_models(study: Study) -> dict[str, np.ndarray]:
    """Row name to metrics [T] on the test split: base, each model, the simple average."""
    models = len(study.models)
    named = {"base": np.zeros(models)}
    named |= {name: np.eye(models)[n] for n, name in enumerate(study.models)}
    named["average of all"] = np.full(models, 1 / models)
    with Measurer(study) as measurer:
        measured = measurer.measure(np.stack(list(named.values())), study.held_out_tasks)
    return dict(zip(named, measured, strict=True))


def front_of(config: StudyConfig, single: dict[str, np.ndarray]) -> dict[str, Any]:
    """Plain MAP with the paper's budget: its surrogates, its front on validation, and the chosen points on test."""
    study = prepare(config, home_folder())
    goals, models = study.objectives, len(study.models)
    begun = time.perf_counter()
    with Measurer(study) as measurer:
        search = new_search(config)
        asked = search.ask()
        search.tell(asked, measurer.measure(asked, study.search_tasks))
        front = search.front(FrontConfig())
        fresh = sample("uniform", FRESH + 1 + models, box=config.search.box_array(models), seed=99)[-FRESH:]
        seen_by_none = measurer.measure(fresh, study.search_tasks)
        spread = np.linspace(0, len(front.coefficients_PN) - 1, min(VERIFIED, len(front.coefficients_PN))).astype(int)
        order = np.argsort(front.predicted_PT[:, 0], kind="stable")
        verified = order[spread]
        real = measurer.measure(front.coefficients_PN[verified], study.search_tasks)
        chosen, average = _preferred(measurer, study, front.coefficients_PN, front.predicted_PT, single)
    fits = front.fits
    sign = np.where(goals.maximise, 1.0, -1.0)
    worst = np.min([sign * row[:models] for name, row in single.items() if name in study.models], axis=0)
    print(f"{config.name}, N = {models}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return {
        "N": models,
        "evaluations": f"{len(asked)} × {models}",
        "R² on fresh evaluations": float(
            np.mean([r_squared(seen_by_none[:, t], fit.surrogate.predict(fresh)) for t, fit in enumerate(fits)])
        ),
        "cross-validated R²": float(np.mean([fit.cross_validated_r2 for fit in fits])),
        "points on the front": len(front.coefficients_PN),
        "of those verified, non-dominated": int(non_dominated(real, maximise=goals.maximise).sum()),
        "abs(predicted - real)": float(np.abs(front.predicted_PT[verified] - real).mean()),
        "hypervolume of them": hypervolume(real, reference_T=sign * worst, maximise=goals.maximise),
        "preferred points, test": chosen,
        "average of the N, test": average,
    }


def _preferred(
    measurer: Measurer, study: Study, c_PN: np.ndarray, predicted_PT: np.ndarray, single: dict[str, np.ndarray]
) -> tuple[str, str]:
    """Mean ± deviation over preferences of the preferred metric on test, each task in shares of its own model's.

    The surrogates choose; 1 is the single models' level. A metric that is to be small counts by its inverse ratio.
    """
    models, goals = len(study.models), study.objectives
    own = np.array([single[name][t] for t, name in enumerate(study.models)])
    preferences = np.random.default_rng(0).dirichlet(np.ones(models), PREFERENCES)

    def shares(metrics: np.ndarray) -> np.ndarray:
        return np.where(goals.maximise, metrics / own, own / metrics)

    best = [int(np.argmax(shares(predicted_PT) @ weights)) for weights in preferences]
    found = shares(measurer.measure(c_PN[best], study.held_out_tasks))
    mean = shares(measurer.measure(np.full((1, models), 1 / models), study.held_out_tasks))
    values = [(preferences * found).sum(axis=1), (preferences * mean).sum(axis=1)]
    return tuple(f"{v.mean():.4f} ± {v.std(ddof=1):.4f}" for v in values)  # type: ignore[return-value]


def _first(config: dict[str, Any], count: int) -> StudyConfig:
    """The suite with its first tasks only."""
    return parse_config({**config, "models": config["models"][:count], "tasks": config["tasks"][:count]})
