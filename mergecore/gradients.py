"""Gradients of losses in the merged weights, and in the coefficients that merged them.

A network's parameters are views of one merged buffer, so beside the task matrix nothing but one merged copy is held,
whatever the number of models. The gradient in a coefficient is the inner product of the gradient in the weights with
the task vector (`TaskMatrix.pull_back`): `CoefficientGradients` takes it as soon as autograd has a tensor's gradient,
which is then dropped, so that no whole gradient of the weights ever lives. `MergedGradients` keeps one, for methods
that need it.

Shape suffixes: N models, G blocks, P stored elements.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from mergecore.evaluation import CandidateEvaluator
from mergecore.evaluators.base import Candidate, Evaluator
from mergecore.study import Study
from mergecore.task_matrix import BlockMap

Loss = Callable[[Evaluator, Candidate], torch.Tensor]
"""A scalar of one task's evaluator and a candidate that keeps gradients."""


class Networks:
    """The networks of a study's tasks at one merged model after the other.

    Args:
        study: a prepared study over task vectors.
        threads: torch threads of this process; as many as there are already by default.
    """

    def __init__(self, study: Study, *, threads: int | None = None) -> None:
        self._study = study
        self._candidates = CandidateEvaluator(study, threads=threads or torch.get_num_threads())
        self._coefficients = np.zeros(len(study.models))

    @property
    def evaluators(self) -> CandidateEvaluator:
        """What holds the networks and the data."""
        return self._candidates

    def merge(self, coefficients: np.ndarray, *, blocks: BlockMap | None = None) -> None:
        """Go to another candidate, [N], or [G, N] with ``blocks``."""
        self._coefficients = np.asarray(coefficients, dtype=np.float64)
        self._candidates.merge(self._coefficients, blocks=blocks)

    def candidate(self, measured: int) -> Candidate:
        """The candidate in the buffer, with the head of one task."""
        return self._candidates.candidate(self._coefficients, self._study.measured[measured].head, gradients=True)


class DifferentiatedNetworks(Networks, ABC):
    """Networks whose losses have gradients.

    Args:
        study, threads: as for `Networks`.
        checkpoint_activations: keep only what goes into each block of a network, and compute the rest of its
            activations again for the backward pass.
    """

    def __init__(self, study: Study, *, threads: int | None = None, checkpoint_activations: bool = False) -> None:
        super().__init__(study, threads=threads)
        self._checkpoint = checkpoint_activations
        self._bound: set[int] = set()
        buffer = self._candidates.weights_P
        self._places = {entry.offset: index for index, entry in enumerate(self._candidates.matrix.layout.entries)}
        self._storage, self._start = buffer.untyped_storage().data_ptr(), int(buffer.storage_offset())

    def differentiate(self, measured: int, loss_of: Loss) -> float:
        """A forward and a backward pass of one task's loss, which it returns.

        Raises:
            InputError: the evaluator has no such loss.
        """
        candidate = self.candidate(measured)
        module = candidate.module()
        if id(module) not in self._bound:
            for parameter in module.parameters():
                if parameter.untyped_storage().data_ptr() == self._storage:
                    self.bind(parameter, self._places[int(parameter.storage_offset()) - self._start])
            if self._checkpoint:
                checkpoint_blocks(module)
            self._bound.add(id(module))
        with torch.inference_mode(False), torch.enable_grad():
            loss = loss_of(self._candidates.evaluator(measured), candidate)
            if loss.requires_grad:
                loss.backward()
        return float(loss.detach())

    @abstractmethod
    def bind(self, parameter: torch.nn.Parameter, index: int) -> None:
        """Say what becomes of the gradient of a parameter that is the tensor of one entry of the layout."""


class MergedGradients(DifferentiatedNetworks):
    """Differentiates losses in the merged weights.

    Args:
        study: a prepared study.

    Attributes:
        gradient_P: the gradient in the merged weights, summed over the losses since the last merge; in the candidate's
            format, zero where no loss depends on a weight. Heads and frozen tensors have none.
    """

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        self.gradient_P = torch.zeros_like(self._candidates.weights_P)

    def merge(self, coefficients: np.ndarray, *, blocks: BlockMap | None = None) -> None:
        """Go to another candidate, [N], or [G, N] with ``blocks``, with a gradient of zero."""
        super().merge(coefficients, blocks=blocks)
        self.gradient_P.zero_()

    def add(self, measured: int, loss_of: Loss) -> float:
        """Add the gradient of one loss, which it returns.

        Args:
            measured: index into ``study.measured``.
            loss_of: the loss.

        Raises:
            InputError: the evaluator has no such loss.
        """
        return self.differentiate(measured, loss_of)

    def bind(self, parameter: torch.nn.Parameter, index: int) -> None:
        """Its gradient accumulates in a view of the one buffer."""
        offset = self._candidates.matrix.layout.entries[index].offset
        parameter.requires_grad_(True)
        parameter.grad = self.gradient_P[offset : offset + parameter.numel()].view(parameter.shape)


class CoefficientGradients(DifferentiatedNetworks):
    """Differentiates losses in the coefficients of some blocks of the merge.

    Tensors of no block keep the coefficients of `merge_all`; their gradients are not even computed.

    Args:
        study: a prepared study over task vectors.
        block_of: name of a tensor to its block, None where it has none.
        threads, checkpoint_activations: as for `DifferentiatedNetworks`.

    Attributes:
        blocks: the G blocks that there are tensors of.
    """

    def __init__(
        self,
        study: Study,
        block_of: Callable[[str], str | None],
        *,
        threads: int | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(study, threads=threads, checkpoint_activations=checkpoint_activations)
        matrix = self._candidates.matrix
        self.blocks = matrix.layout.blocks(block_of)
        numbers = {name: g for g, name in enumerate(self.blocks.names)}
        blocks = (block_of(entry.name) for entry in matrix.layout.entries)
        self._block = [None if name is None else numbers[name] for name in blocks]
        self._pulled_GN = torch.zeros(len(numbers), len(study.models), dtype=torch.float64, device=matrix.device)

    def merge_all(self, coefficients_N: np.ndarray) -> None:
        """Merge every tensor with the same coefficients, [N]."""
        self._candidates.merge(coefficients_N)

    def merge_blocks(self, coefficients_GN: np.ndarray) -> None:
        """Merge the blocks anew; everything else stays as it is."""
        self.merge(coefficients_GN, blocks=self.blocks)

    def gradient(self, measured: int, loss_of: Loss) -> tuple[float, np.ndarray]:
        """One loss and its gradient in the coefficients of the blocks, [G, N].

        Args:
            measured: index into ``study.measured``.
            loss_of: the loss.

        Raises:
            InputError: the evaluator has no such loss.
        """
        self._pulled_GN.zero_()
        loss = self.differentiate(measured, loss_of)
        return loss, self._pulled_GN.cpu().numpy().copy()

    def bind(self, parameter: torch.nn.Parameter, index: int) -> None:
        """Its gradient becomes N inner products and is dropped; without a block there is none."""
        block = self._block[index]
        parameter.requires_grad_(block is not None)
        if block is None:
            return
        matrix = self._candidates.matrix

        def pull(found: torch.Tensor) -> None:
            assert found.grad is not None
            gradient, found.grad = found.grad, None
            self._pulled_GN[block] += matrix.pull_back(index, gradient.to(matrix.device))

        parameter.register_post_accumulate_grad_hook(pull)


def checkpoint_blocks(module: torch.nn.Module) -> int:
    """Let the repeated blocks of a network keep their inputs only; returns how many there are.

    Repeated are the members of a list of at least two modules of one class that lies in no other such list.
    """
    found = 0
    for child in module.children():
        blocks = list(child.children())
        is_list = isinstance(child, (torch.nn.ModuleList, torch.nn.Sequential))
        if is_list and len(blocks) > 1 and len({type(block) for block in blocks}) == 1:
            for block in blocks:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
            found += len(blocks)
        else:
            found += checkpoint_blocks(child)
    return found
