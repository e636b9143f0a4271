"""Evaluate many candidates of a study in plain processes, through the ledger, without Prefect and Ray."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
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


class Measurer:
    """Worker processes for one study; a context manager.

    Args:
        study: what is evaluated.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def measure(self, coefficients_KN: np.ndarray, measured: Sequence[int]) -> np.ndarray:
        """Metrics [K, M] on some of ``study.measured``; what the ledger knows is not evaluated again."""
        return self.measure_with_noise(coefficients_KN, measured)[0]

    def measure_with_noise(self, coefficients_KN: np.ndarray, measured: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """As `measure`, with the metrics' standard errors [K, M], NaN where unknown."""
        study = self._study
        keys = [[study.evaluation_key(c, m) for m in measured] for c in coefficients_KN]
        names = [study.measured[m].task.metric for m in measured]
        with Ledger(study.ledger_path) as ledger:
            found = _known(ledger, keys, names)
            jobs: dict[tuple[float, ...], tuple[int, ...]] = {}
            for c, row in zip(coefficients_KN.tolist(), keys, strict=True):
                missing = tuple(m for m, key in zip(measured, row, strict=True) if key not in found)
                if missing:
                    jobs[tuple(c)] = missing
            for (c, missing), outcomes in zip(jobs.items(), self._evaluate(list(jobs.items())), strict=True):
                for m, outcome in zip(missing, outcomes, strict=True):
                    ledger.record(_fact(study, c, m, outcome), study.measured[m].task.metric)
            found = _known(ledger, keys, names)
        facts = [[(found[key], name) for key, name in zip(row, names, strict=True)] for row in keys]
        metrics = np.array([[fact.metrics.get(name, np.nan) for fact, name in row] for row in facts])
        return metrics, np.array([[fact.noise.get(name, np.nan) for fact, name in row] for row in facts])

    def _evaluate(self, jobs: list[tuple[tuple[float, ...], tuple[int, ...]]]) -> Iterable[list[Outcome]]:
        if not jobs:
            return []
        if self._pool is None:
            self._pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _start, (self._study,))
        return self._pool.map(_evaluate, jobs, chunksize=4)


def _known(ledger: Ledger, keys: list[list[str]], names: list[str]) -> dict[str, Fact]:
    return {key: fact for i, name in enumerate(names) for key, fact in ledger.find((r[i] for r in keys), name).items()}


def _fact(study: Study, c: tuple[float, ...], m: int, outcome: Outcome) -> Fact:
    return Fact(
        key=study.evaluation_key(c, m),
        metrics=outcome.metrics,
        noise=outcome.noise,
        reason=outcome.reason,
        task=study.measured[m].label,
        coefficients=c,
        matrix=study.matrix_key,
        examples=outcome.examples,
        seconds=outcome.seconds,
        worker="benchmark",
    )
