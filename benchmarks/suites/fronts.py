"""What a suite shows: single models on every task, then plain MAP on 2, 3 and all tasks.

Shape suffixes: N models and as many tasks, P points, R preference vectors.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from benchmarks.measuring import Measurer
from benchmarks.suites.tables import SuiteFront, write_suite
from mergecore.config import StudyConfig
from mergecore.config_file import parse_config
from mergecore.files import home_folder
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.indicators import hypervolume, worst_metrics
from mergecore.fronts.spread import spread_points
from mergecore.sampling import sample
from mergecore.search import Front
from mergecore.study import Study, new_search, prepare
from mergecore.surrogates.quadratic import r_squared

FRESH = 30
"""Evaluations that no surrogate has seen, for the held-out R²."""
FRESH_SEED = 99
PREFERENCES = 20


NOTE = f"""\
Coefficients are chosen on validation data, which is carved out of the training data. *R²*: on {FRESH} uniform \
coefficient vectors that no surrogate has seen. *Hypervolume*: of the verified points, on validation, against the \
worst single model on each task. *Preferences*: weights of the tasks, all equal or drawn from Dirichlet(1) \
({PREFERENCES} draws, mean ± deviation); the surrogates choose the point, and its real metrics on test are shares of \
the single models' own, weighted by the preference: 1 is as good as all fine-tuned models at once."""


def run(config: dict[str, Any], *, description: str) -> None:
    """Measure a suite and write ``benchmarks/results/suite_<name>.md``."""
    everything = parse_config(config)
    single = single_models(prepare(everything, home_folder()))
    counts = sorted({2, 3, len(everything.models)})
    fronts = [suite_front(first_tasks(everything, count), single) for count in counts]
    write_suite(everything, description, single, fronts, note=NOTE)


def first_tasks(config: StudyConfig, count: int) -> StudyConfig:
    """The suite with its first tasks and their models only, and the paper's number of samples for so many."""
    if count == len(config.models):
        return config
    search = config.search.model_copy(update={"samples": None})
    return config.model_copy(update={"models": config.models[:count], "tasks": config.tasks[:count], "search": search})


def single_models(study: Study) -> dict[str, np.ndarray]:
    """Row name to metrics [N] on the test split: base, each model, the average of all."""
    models = len(study.models)
    rows = {"base": np.zeros(models)}
    rows |= dict(zip(study.models, np.eye(models), strict=True))
    rows["average of all"] = np.full(models, 1 / models)
    with Measurer(study) as measurer:
        measured = measurer.measure(np.stack(list(rows.values())), study.held_out_tasks)
    return dict(zip(rows, measured, strict=True))


def suite_front(config: StudyConfig, single: dict[str, np.ndarray]) -> SuiteFront:
    """Plain MAP with the paper's budget: its surrogates and front on validation, the chosen points on test."""
    study = prepare(config, home_folder())
    goals, models = study.objectives, len(study.models)
    begun = time.perf_counter()
    with Measurer(study) as measurer:
        search = new_search(config)
        asked_KN = search.ask()
        search.tell(asked_KN, measurer.measure(asked_KN, study.search_tasks))
        front = search.front(config.front)
        verified = spread_points(front.predicted_PT, config.front.verify, maximise=goals.maximise)
        real_PN = measurer.measure(front.coefficients_PN[verified], study.search_tasks)
        fresh_KN = sample("uniform", FRESH, box=search.box_N2, seed=FRESH_SEED, anchors=False)
        unseen_KN = measurer.measure(fresh_KN, study.search_tasks)
        cross_NN = measurer.measure(np.eye(models), study.search_tasks)
        chosen = shares_on_test(measurer, study, front, single)
    r2_N = np.array([r_squared(unseen_KN[:, t], fit.surrogate.predict(fresh_KN)) for t, fit in enumerate(front.fits)])
    worst_N = worst_metrics(cross_NN, maximise=goals.maximise)
    best = non_dominated(real_PN, maximise=goals.maximise)
    print(f"{config.name}, N = {models}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return SuiteFront(
        goals.names,
        r2_N,
        {
            "evaluated coefficient vectors (× N tasks)": len(asked_KN),
            "cross-validated R², mean": float(np.mean([fit.cross_validated_r2 for fit in front.fits])),
            "points on the front": len(front.coefficients_PN),
            "verified; of those non-dominated": f"{len(verified)}; {int(best.sum())}",
            "mean abs(predicted - real) of them": float(np.abs(front.predicted_PT[verified] - real_PN).mean()),
            "hypervolume of them": hypervolume(real_PN, reference_T=worst_N, maximise=goals.maximise),
            **chosen,
        },
    )


def shares_on_test(measurer: Measurer, study: Study, front: Front, single: dict[str, np.ndarray]) -> dict[str, object]:
    """What a user gets who says what is preferred: metrics on test as shares of the single models' own.

    The surrogates choose the point. A metric that is to be small counts by its inverse ratio, so 1 is always the level
    of the fine-tuned model and more is better.
    """
    models, maximise = len(study.models), study.objectives.maximise
    own_N = np.array([single[name][t] for t, name in enumerate(study.models)])

    def shares(metrics_PN: np.ndarray) -> np.ndarray:
        return np.where(maximise, metrics_PN / own_N, own_N / metrics_PN)

    drawn_RN = np.random.default_rng(0).dirichlet(np.ones(models), PREFERENCES)
    preferences_RN = np.vstack([np.full(models, 1 / models), drawn_RN])
    preferred_R = (preferences_RN @ shares(front.predicted_PT).T).argmax(axis=1)
    found_RN = shares(measurer.measure(front.coefficients_PN[preferred_R], study.held_out_tasks))
    average_1N = shares(measurer.measure(np.full((1, models), 1 / models), study.held_out_tasks))
    base_1N = shares(single["base"][None, :models])
    front_R, average_R, base_R = ((preferences_RN * values).sum(axis=1) for values in (found_RN, average_1N, base_1N))
    return {
        "equal preferences, test": float(front_R[0]),
        "the average 1/N by these, test": float(average_R[0]),
        "the base by these, test": float(base_R[0]),
        "drawn preferences, test": _spread(front_R[1:]),
        "the average 1/N by those, test": _spread(average_R[1:]),
        "the base by those, test": _spread(base_R[1:]),
    }


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"
