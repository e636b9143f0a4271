"""Evaluate many candidates of a study in plain processes, through the ledger, without Prefect and Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from mergecore.evaluation import CandidateEvaluator, Outcome
from mergecore.ledger import Fact, Ledger
from mergecore.study import Study

_evaluator: CandidateEvaluator


def _start(study: Study) -> None:
    global _evaluator
    _evaluator = CandidateEvaluator(study)


def _evaluate(job: tuple[tuple[float, ...], tuple[int, ...]]) -> list[Outcome]:
    return _evaluator.evaluate(*job)


def measure(study: Study, coefficients_KN: np.ndarray, measured: Sequence[int]) -> np.ndarray:
    """Metrics [K, M] of every candidate on some of ``study.measured``; what the ledger knows is not evaluated again."""
    keys = [[study.evaluation_key(c, m) for m in measured] for c in coefficients_KN]
    names = [study.measured[m].task.metric for m in measured]
    with Ledger(study.ledger_path) as ledger:

        def known() -> dict[str, Fact]:
            return {k: f for i, name in enumerate(names) for k, f in ledger.find((r[i] for r in keys), name).items()}

        found = known()
        jobs = {
            tuple(map(float, c)): tuple(m for m, key in zip(measured, row, strict=True) if key not in found)
            for c, row in zip(coefficients_KN, keys, strict=True)
        }
        jobs = {c: missing for c, missing in jobs.items() if missing}
        workers = min(len(jobs), os.cpu_count() or 1)
        if workers:
            with ProcessPoolExecutor(workers, get_context("spawn"), _start, (study,)) as pool:
                for (c, missing), outcomes in zip(
                    jobs.items(), pool.map(_evaluate, jobs.items(), chunksize=4), strict=True
                ):
                    for m, o in zip(missing, outcomes, strict=True):
                        item = study.measured[m]
                        key = study.evaluation_key(c, m)
                        fact = Fact(
                            key,
                            o.metrics,
                            o.noise,
                            o.reason,
                            item.label,
                            c,
                            study.matrix_key,
                            o.examples,
                            o.seconds,
                            "",
                        )
                        ledger.record(fact, item.task.metric)
        found = known()
    return np.array(
        [[found[key].metrics.get(name, np.nan) for key, name in zip(row, names, strict=True)] for row in keys]
    )
