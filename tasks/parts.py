"""Stage: evaluate every candidate on a part of the data, and those near the front on all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mergecore.fidelity import Correction, grown_count, nearest_front
from tasks.evaluation import Evaluations, evaluate

if TYPE_CHECKING:
    from tasks.run import Run


def evaluate_by_parts(
    run: Run,
    coefficients_KN: np.ndarray,
    correction: Correction,
    *,
    label: str,
    time_left: Callable[[], bool] | None = None,
) -> Evaluations:
    """All candidates on the part of the data, then those nearest to their front on all of it.

    Args:
        run: in progress.
        coefficients_KN: the candidates.
        correction: learns from the candidates that are measured on both, and estimates the others' metrics.
        label: what is being evaluated, for people.
        time_left: of `evaluate`.
    """
    study = run.study
    part = evaluate(run, coefficients_KN, study.part_tasks, label=f"{label}, part of the data", time_left=time_left)
    count = grown_count(len(part.coefficients_KN), study.config.budget.grow)
    near = nearest_front(part.metrics_KM, part.noise_KM, count, maximise=study.objectives.maximise)
    whole = evaluate(run, part.coefficients_KN[near], study.search_tasks, label=label, time_left=time_left)
    grown = near[whole.places_K]
    correction.learn(part.metrics_KM[grown], whole.metrics_KM)
    metrics_KM, noise_KM = correction.estimate(part.metrics_KM, part.noise_KM)
    metrics_KM[grown], noise_KM[grown] = whole.metrics_KM, whole.noise_KM
    seconds_K, reasons, estimated_K = part.seconds_K.copy(), [*part.reasons], np.ones(len(metrics_KM), dtype=bool)
    seconds_K[grown] += whole.seconds_K
    estimated_K[grown] = False
    for k, reason in zip(grown, whole.reasons, strict=True):
        reasons[k] = reason
    return replace(
        part,
        metrics_KM=metrics_KM,
        noise_KM=noise_KM,
        seconds_K=seconds_K,
        reasons=reasons,
        fresh=part.fresh + whole.fresh,
        complete=part.complete and whole.complete,
        on_part=True,
        estimated_K=estimated_K,
    )
