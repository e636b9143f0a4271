"""Stages: measure chosen points of a front on real merged models, and on held-out data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mergecore.search import Front
from tasks.evaluation import Evaluations, evaluate
from tasks.search import log_round

if TYPE_CHECKING:
    from tasks.run import Run


def verify(run: Run, front: Front, chosen: np.ndarray) -> tuple[Front, list[Evaluations]]:
    """Evaluate chosen points on the data of the search.

    Args:
        run: the run.
        front: a predicted front.
        chosen: indices of the points.

    Returns:
        The front with their real metrics, and the evaluations (none when nothing was chosen).
    """
    if not len(chosen):
        return front, []
    candidates_KN = front.coefficients_PN[chosen]
    found = evaluate(run, candidates_KN, run.study.search_tasks, label="verification", must_succeed=False)
    log_round(run, "verification", found)
    real_PT = front.real_PT.copy()
    real_PT[chosen] = found.metrics_KM
    return replace(front, real_PT=real_PT), [found]


def held_out_metrics(run: Run, front: Front, chosen: np.ndarray) -> tuple[np.ndarray, Evaluations | None]:
    """Metrics of chosen points on the held-out splits, which took no part in any choice.

    Returns:
        [P, T], NaN where not measured, and the evaluations; all NaN and None when the config names no such split.
    """
    test_PT = np.full_like(front.real_PT, np.nan)
    if not run.study.held_out_tasks or not len(chosen):
        return test_PT, None
    found = evaluate(run, front.coefficients_PN[chosen], run.study.held_out_tasks, label="held-out data")
    test_PT[chosen] = found.metrics_KM
    return test_PT, found
