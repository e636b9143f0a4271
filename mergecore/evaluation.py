"""Evaluate candidates of a study in this process: what every Ray worker, and a script without Ray, does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mergecore.data.cache import decoded
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Evaluator
from mergecore.execution import in_this_process
from mergecore.measured import build_network
from mergecore.pareto_moe.unloading import open_unloading
from mergecore.study import Study
from mergecore.task_matrix import BlockMap, TaskMatrix, open_task_matrix


@dataclass(frozen=True)
class Outcome:
    """What became of one (coefficient vector, task): metrics, or the reason why there are none.

    ``decoded`` counts the examples that had to be decoded or tokenised for it.
    """

    metrics: dict[str, float]
    noise: dict[str, float]
    examples: int
    seconds: float
    reason: str = ""
    decoded: int = 0


class CandidateEvaluator:
    """Holds what is heavy once (task matrix, networks, data) and measures one candidate after the other.

    On a GPU the task matrix is held there when it fits beside a candidate; otherwise candidates are merged on the host
    and copied.

    Args:
        study: a prepared study.
        threads: torch threads of this process; the same number gives the same bits.
    """

    def __init__(self, study: Study, *, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._study = study
        self._device = in_this_process(study.device)
        if self._device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32
            torch.backends.cudnn.deterministic = True
        matrix = open_task_matrix(study.matrix_folder, key=study.matrix_key, models=study.models)
        wanted = getattr(torch, study.precision)
        # a base in the wanted 16-bit format is merged in float32 and rounded to it, as its export would be
        self._dtype = wanted if matrix.base_P.dtype == wanted else torch.float32
        self._matrix = matrix.to(self._device) if self._fits(matrix) else matrix
        self._unloading = open_unloading(study.routers, matrix.layout) if study.routers is not None else None
        self._merged_P = self._matrix.new_candidate(self._dtype)
        self._candidate_P = self._merged_P.to(self._device)  # the same tensor where the matrix is
        self._evaluators: dict[int, Evaluator] = {}
        self._states: dict[str | None, tuple[dict[str, torch.Tensor], frozenset[str]]] = {}
        self._modules: dict[str | None, torch.nn.Module] = {}

    def evaluate(self, coefficients: Sequence[float] | np.ndarray, measured: Sequence[int]) -> list[Outcome]:
        """Merge once, then measure each task; a task that fails does not stop the others.

        Args:
            coefficients: [N].
            measured: indices into ``study.measured``.

        Raises:
            InputError: the task or the network cannot work for any candidate.
        """
        c_N = np.asarray(coefficients, dtype=np.float64)
        self.merge(c_N)
        return [self._measure(self.candidate(c_N, self._study.measured[index].head), index) for index in measured]

    @property
    def matrix(self) -> TaskMatrix:
        """The task matrix, on the device if it fits there."""
        return self._matrix

    @property
    def weights_P(self) -> torch.Tensor:
        """The buffer on the device that every network's merged tensors are views of."""
        return self._candidate_P

    def merge(self, coefficients: np.ndarray, *, blocks: BlockMap | None = None) -> None:
        """Make the candidate with these coefficients, [N] or [G, N] with ``blocks``, the one in the buffer.

        Where the study has routers, a preference [T] takes the place of the coefficients.
        """
        if self._unloading is not None and blocks is None:
            self._unloading.merge(self._matrix, coefficients, out=self._merged_P)
        else:
            self._matrix.merge(coefficients, out=self._merged_P, blocks=blocks)
        if self._candidate_P is not self._merged_P:
            self._candidate_P.copy_(self._merged_P)

    def evaluator(self, index: int) -> Evaluator:
        """The evaluator of one task; opened once.

        Raises:
            InputError: its data cannot be used.
        """
        if index not in self._evaluators:
            self._evaluators[index] = self._study.measured[index].evaluator()
        return self._evaluators[index]

    def adapted_tensors(self, coefficients: Sequence[float] | np.ndarray, measured: int) -> dict[str, torch.Tensor]:
        """What the evaluator of one task puts in the place of merged tensors, by the names of that task's network.

        Args:
            coefficients: [N].
            measured: index into ``study.measured``.
        """
        self.evaluate(coefficients, [])
        item = self._study.measured[measured]
        candidate = self.candidate(np.asarray(coefficients, dtype=np.float64), item.head)
        return dict(item.evaluator().adapted_tensors(candidate))

    def candidate(self, c_N: np.ndarray, head: str | None, *, gradients: bool = False) -> Candidate:
        """What is in the buffer now, as the network with one model's head sees it."""
        weights, merged = self._state(head)
        return Candidate(
            c_N,
            weights,
            lambda: self._module(head),
            device=self._device,
            precision=self._study.precision,
            merged=merged,
            gradients=gradients,
        )

    def _fits(self, matrix: TaskMatrix) -> bool:
        if self._device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self._device)
        return matrix.nbytes + 2 * matrix.layout.length * self._dtype.itemsize < 0.7 * free

    def _state(self, head: str | None) -> tuple[dict[str, torch.Tensor], frozenset[str]]:
        """The state dict of the network with one model's head, and the names in it that candidates change.

        Its tensors are views of the buffer, and what no candidate changes.
        """
        if head not in self._states:
            state = self._matrix.named(self._candidate_P)
            merged = frozenset(name for entry in self._matrix.layout.entries for name in (entry.name, *entry.tied))
            if head is not None:
                stored = self._study.heads[head]
                state = stored.state_dict(self._state(None)[0])
                merged = frozenset(own for own, key in stored.body.items() if key in merged)
            self._states[head] = {name: self._placed(tensor) for name, tensor in state.items()}, merged
        return self._states[head]

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the device and in the candidate's format; the tensor itself when it is."""
        return tensor.to(self._device, self._dtype if tensor.dtype.is_floating_point else tensor.dtype)

    def _module(self, head: str | None) -> torch.nn.Module:
        if head not in self._modules:
            study = self._study
            stored = study.heads[head] if head is not None else None
            weights, _ = self._state(head)
            self._modules[head] = build_network(study.config, study.base_folder, stored, weights, self._device)
        return self._modules[head]

    def _measure(self, candidate: Candidate, index: int) -> Outcome:
        item = self._study.measured[index]
        started, before = time.perf_counter(), decoded()
        try:
            found = self.evaluator(index).evaluate(candidate)
        except InputError:
            raise  # wrong for every candidate: no fact about this one, and to be mended by the user
        except Exception as error:  # whatever an evaluator raises is this candidate's failure, not the run's
            reason = f"{type(error).__name__}: {error}"
            return Outcome({}, {}, 0, time.perf_counter() - started, reason[:500])
        seconds = time.perf_counter() - started
        reason = _fault(found.metrics[item.task.metric], item.task.metric, item.task.bounds)
        return Outcome(
            dict(found.metrics), dict(found.noise), found.examples, seconds, reason, decoded=decoded() - before
        )


def _fault(value: float, metric: str, bounds: tuple[float | None, float | None]) -> str:
    lower, upper = bounds
    if not np.isfinite(value):
        return f"{metric} is {value}"
    if (lower is not None and value < lower) or (upper is not None and value > upper):
        return f"{metric} is {value:.6g}, outside its range [{lower}, {upper}]"
    return ""
