"""Evaluate candidates of a study in this process: what every Ray worker, and a script without Ray, does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mergecore.architectures import build_module
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Evaluator
from mergecore.study import Study
from mergecore.task_matrix import open_task_matrix


@dataclass(frozen=True)
class Outcome:
    """What became of one (coefficient vector, task): metrics, or the reason why there are none."""

    metrics: dict[str, float]
    noise: dict[str, float]
    examples: int
    seconds: float
    reason: str = ""


class CandidateEvaluator:
    """Holds what is heavy once (task matrix, network, data) and measures one candidate after the other.

    Args:
        study: a prepared study.
        threads: torch threads of this process; the same number gives the same bits.
    """

    def __init__(self, study: Study, *, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._study = study
        self._matrix = open_task_matrix(study.matrix_folder, key=study.matrix_key, models=tuple(study.models))
        self._buffer_P = self._matrix.new_candidate()
        self._weights = self._matrix.named(self._buffer_P)
        self._evaluators: dict[int, Evaluator] = {}

    def evaluate(self, coefficients: Sequence[float] | np.ndarray, measured: Sequence[int]) -> list[Outcome]:
        """Merge once, then measure each task; a task that fails does not stop the others.

        Args:
            coefficients: [N].
            measured: indices into ``study.measured``.

        Raises:
            InputError: the task or the network cannot work for any candidate.
        """
        c_N = np.asarray(coefficients, dtype=np.float64)
        self._matrix.merge(c_N, out=self._buffer_P)
        candidate = Candidate(c_N, self._weights, lambda: self._module)
        return [self._measure(candidate, index) for index in measured]

    @cached_property
    def _module(self) -> torch.nn.Module:
        return build_module(self._study.base_folder, self._weights, source=self._study.config.base)

    def _measure(self, candidate: Candidate, index: int) -> Outcome:
        item = self._study.measured[index]
        started = time.perf_counter()
        try:
            if index not in self._evaluators:
                self._evaluators[index] = item.evaluator()
            found = self._evaluators[index].evaluate(candidate)
        except InputError:
            raise  # wrong for every candidate: no fact about this one, and to be mended by the user
        except Exception as error:  # whatever an evaluator raises is this candidate's failure, not the run's
            reason = f"{type(error).__name__}: {error}"
            return Outcome({}, {}, 0, time.perf_counter() - started, reason[:500])
        seconds = time.perf_counter() - started
        reason = _fault(found.metrics[item.task.metric], item.task.metric, item.task.bounds)
        return Outcome(dict(found.metrics), dict(found.noise), found.examples, seconds, reason)


def _fault(value: float, metric: str, bounds: tuple[float | None, float | None]) -> str:
    lower, upper = bounds
    if not np.isfinite(value):
        return f"{metric} is {value}"
    if (lower is not None and value < lower) or (upper is not None and value > upper):
        return f"{metric} is {value:.6g}, outside its range [{lower}, {upper}]"
    return ""
