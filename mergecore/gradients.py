"""Gradients of losses in the merged weights, and by them in the coefficients.

The networks' parameters are views of one merged buffer, and their gradients accumulate in one buffer of the same
layout: beside the task matrix nothing but one merged copy and one gradient of it is held, whatever the number of
models. The gradient in a coefficient is the inner product of that buffer with the task vector (`TaskMatrix.pull_back`).

Shape suffixes: N models, G blocks, P stored elements.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mergecore.evaluation import CandidateEvaluator
from mergecore.evaluators.base import Candidate, Evaluator
from mergecore.study import Study
from mergecore.task_matrix import BlockMap

Loss = Callable[[Evaluator, Candidate], torch.Tensor]
"""A scalar of one task's evaluator and a candidate that keeps gradients."""


class MergedGradients:
    """Differentiates losses of a study's tasks at one merged model after the other.

    Args:
        study: a prepared study.

    Attributes:
        gradient_P: the gradient in the merged weights, summed over the losses since the last merge; in the candidate's
            format, zero where no loss depends on a weight. Heads and frozen tensors have none.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._candidates = CandidateEvaluator(study, threads=torch.get_num_threads())
        self.gradient_P = torch.zeros_like(self._candidates.weights_P)
        self._coefficients = np.zeros(len(study.models))
        self._bound: set[int] = set()

    @property
    def evaluators(self) -> CandidateEvaluator:
        """What holds the networks and the data."""
        return self._candidates

    def merge(self, coefficients: np.ndarray, *, blocks: BlockMap | None = None) -> None:
        """Go to another candidate, [N] or [G, N] with ``blocks``, with a gradient of zero."""
        self._coefficients = np.asarray(coefficients, dtype=np.float64)
        self._candidates.merge(self._coefficients, blocks=blocks)
        self.gradient_P.zero_()

    def add(self, measured: int, loss_of: Loss) -> float:
        """Add the gradient of one loss.

        Args:
            measured: index into ``study.measured``.
            loss_of: the loss.

        Returns:
            The loss.

        Raises:
            InputError: the evaluator has no such loss.
        """
        candidate = self.candidate(measured)
        self._bind(candidate.module())
        with torch.inference_mode(False), torch.enable_grad():
            loss = loss_of(self._candidates.evaluator(measured), candidate)
            loss.backward()
        return float(loss.detach())

    def candidate(self, measured: int) -> Candidate:
        """The candidate in the buffer, with the head of one task."""
        return self._candidates.candidate(self._coefficients, self._study.measured[measured].head, gradients=True)

    def pull_back(self, *, blocks: BlockMap | None = None) -> np.ndarray:
        """The gradient in the coefficients, [N], or [G, N] with ``blocks``."""
        gradient_P = self.gradient_P.to(self._candidates.matrix.device)
        return self._candidates.matrix.pull_back(gradient_P, blocks=blocks)

    def _bind(self, module: torch.nn.Module) -> None:
        """Let the gradients of a network's merged parameters be views of the one buffer."""
        if id(module) in self._bound:
            return
        buffer = self._candidates.weights_P
        start = buffer.storage_offset()
        for parameter in module.parameters():
            if parameter.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr():
                parameter.requires_grad_(True)
                offset = parameter.storage_offset() - start
                parameter.grad = self.gradient_P[offset : offset + parameter.numel()].view(parameter.shape)
        self._bound.add(id(module))
