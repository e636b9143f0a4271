"""Training of all weights for one preference, what the Pareto-learning papers compare with.

From the base, by linear scalarisation, exact Pareto search (Mahapatra and Rajan 2020) or MGDA (Sener and Koltun 2018),
one labelled batch of every task a step. What was learned is stored like a merge: the difference from the base. Heads
that are kept apart stay frozen, as they do in PWE-MoE.

Shape suffixes: T tasks, P stored elements.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from mergecore.errors import InputError, NumericalError
from mergecore.merging.base import Merge, Progress
from mergecore.options import PluginOptions
from mergecore.pareto_moe.scalarisation import SCALARISATIONS
from mergecore.task_matrix import Entry, TaskMatrix

if TYPE_CHECKING:
    from mergecore.evaluators.base import Candidate, Evaluator
    from mergecore.gradients import MergedGradients
    from mergecore.study import Study

LAST_RATE = 0.1
"""Of the first learning rate, at the end of the cosine."""


class FullTrainingOptions(PluginOptions):
    """Options of training all weights."""

    preference: list[float] | None = Field(None, description="One number a task; default: all alike. MGDA has none.")
    steps: int = Field(1000, ge=1, description="Of Adam; the paper takes 4000.")
    batch_size: int = Field(16, ge=1, description="Labelled examples of each task a step.")
    learning_rate: float = Field(1e-5, gt=0, description="Falls to a tenth on a cosine.")
    start: str = Field("base", pattern="^(base|average)$", description="Where training starts: 'base' or 'average'.")
    seed: int = Field(0, ge=0, description="Of the batches.")


class FullTraining(Merge):
    """All weights, trained for one preference.

    Class attributes:
        scalarisation: how the tasks' losses become one step.
    """

    Options: ClassVar[type[PluginOptions]] = FullTrainingOptions
    needs_data: ClassVar[bool] = True
    scalarisation: ClassVar[str]

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._trained_P = torch.empty(0)
        self._entries: dict[str, Entry] = {}

    def check(self, study: Study) -> None:
        """The preference is one of the study's tasks."""
        self._preference(len(study.config.tasks))

    def tasks(self, study: Study) -> list[int]:
        """On labelled data of their own, where the study names some."""
        return study.training_tasks

    def prepare(self, study: Study, matrix: TaskMatrix, progress: Progress | None = None) -> None:
        """Train; memory beyond the candidate: a gradient and Adam's two moments, and for EPO and MGDA T gradients."""
        from mergecore.gradients import MergedGradients

        options, tasks, count = self.options, self.tasks(study), len(study.models)
        gradients = MergedGradients(study)
        gradients.merge(np.zeros(count) if options.start == "base" else np.full(count, 1 / count))
        sizes = [gradients.evaluators.evaluator(index).examples for index in tasks]
        rule, r_T = SCALARISATIONS.get(self.scalarisation)(), self._preference(len(tasks))
        buffer = gradients.evaluators.weights_P
        weights = buffer if buffer.dtype == torch.float32 else buffer.float()  # Adam's steps are lost in 16 bits
        optimiser = torch.optim.Adam([weights], lr=options.learning_rate)
        rng = np.random.default_rng(options.seed)
        for step in range(options.steps):
            rows = [rng.integers(size, size=min(options.batch_size, size)) for size in sizes]
            gradients.gradient_P.zero_()
            if rule.needs_gradients:
                weights.grad = self._combined(gradients, tasks, rows, rule, r_T, step)
            else:
                for index, own, weight in zip(tasks, rows, rule.weights(np.ones(len(tasks)), r_T, None), strict=True):
                    self._add(gradients, index, own, float(weight), step)
                weights.grad = gradients.gradient_P.float()
            share = 0.5 * (1 + math.cos(math.pi * step / options.steps))
            optimiser.param_groups[0]["lr"] = options.learning_rate * (LAST_RATE + (1 - LAST_RATE) * share)
            optimiser.step()
            if weights is not buffer:
                buffer.copy_(weights)
            if progress:
                progress(step + 1, options.steps)
        self._trained_P = weights.detach().to(matrix.device)
        self._entries = {entry.name: entry for entry in matrix.layout.entries}

    def tensor(self, deltas: torch.Tensor, base: torch.Tensor, *, name: str) -> torch.Tensor:
        """What was trained, less the base."""
        entry = self._entries[name]
        return self._trained_P[entry.offset : entry.offset + entry.size].view(entry.shape) - base

    def _combined(
        self,
        gradients: MergedGradients,
        tasks: list[int],
        rows: list[np.ndarray],
        rule: Any,
        r_T: np.ndarray,
        step: int,
    ) -> torch.Tensor:
        """Each task's gradient apart, then their sum with the weights that their inner products give."""
        losses, own_TP = [], []
        for index, members in zip(tasks, rows, strict=True):
            gradients.gradient_P.zero_()
            losses.append(self._add(gradients, index, members, 1.0, step))
            own_TP.append(gradients.gradient_P.float().clone())
        gram_TT = np.array([[float(torch.dot(one, two)) for two in own_TP] for one in own_TP])
        weights_T = rule.weights(np.array(losses), r_T, gram_TT)
        total_P = own_TP[0].mul_(float(weights_T[0]))
        for weight, own_P in zip(weights_T[1:].tolist(), own_TP[1:], strict=True):
            total_P.add_(own_P, alpha=weight)
        return total_P

    def _add(self, gradients: MergedGradients, index: int, rows: np.ndarray, weight: float, step: int) -> float:
        """The loss of a batch, its gradient added with a weight."""

        def weighted(evaluator: Evaluator, candidate: Candidate) -> torch.Tensor:
            return weight * evaluator.loss(candidate, rows)

        loss = gradients.add(index, weighted)
        if not math.isfinite(loss):
            raise NumericalError(
                f"The training of all weights diverged: the loss of the task number {index} is {loss} in step {step}.",
                "Lower its learning_rate.",
            )
        return loss

    def _preference(self, tasks: int) -> np.ndarray:
        given = self.options.preference
        if given is None:
            return np.full(tasks, 1 / tasks)
        r_T = np.array(given, dtype=np.float64)
        if len(r_T) != tasks or not np.isfinite(r_T).all() or (r_T < 0).any() or r_T.sum() <= 0:
            raise InputError(
                f"The preference {given} of {self.scalarisation!r} is not one number from 0 for each of {tasks} tasks."
            )
        return r_T / r_T.sum()


class LinearScalarisation(FullTraining):
    """Descends the sum of the losses, weighted by the preference."""

    scalarisation: ClassVar[str] = "ls"


class ExactPareto(FullTraining):
    """Moves the losses into the preference's proportions, then down."""

    scalarisation: ClassVar[str] = "epo"


class MinNorm(FullTraining):
    """Descends along the shortest vector in the gradients' hull, which harms no task; its end is any Pareto point."""

    scalarisation: ClassVar[str] = "mgda"
