"""Losses of batches on a network that routers merged, and their gradients in the routing weights.

Shape suffixes: T tasks, N models, G modules with a router, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mergecore.evaluators.base import Candidate, Evaluator
from mergecore.gradients import CoefficientGradients
from mergecore.pareto_moe.training import Step
from mergecore.pareto_moe.unloading import RouterPlan
from mergecore.study import Study


@dataclass(frozen=True)
class RoutedStudy:
    """What a worker needs to differentiate; small, plain data.

    Attributes:
        study: over the task vectors.
        plan: which tensors belong to which module.
        checkpoint_activations: whether activations are computed twice instead of kept.
    """

    study: Study
    plan: RouterPlan
    checkpoint_activations: bool = False


@dataclass(frozen=True)
class Batch:
    """A part of a step: some examples of one task, at one preference.

    Attributes:
        preference: number of the preference, m.
        task: number of the task, t.
        share: of the task's batch that these examples are.
        routing_GN: routing weights of every module.
        rows: [B] numbers of the examples.
    """

    preference: int
    task: int
    share: float
    routing_GN: np.ndarray
    rows: np.ndarray


def batches(step: Step, micro_batch: int | None) -> Iterator[Batch]:
    """The parts of a step, whatever the number of workers, so that sums are the same."""
    for m, tasks in enumerate(step.rows):
        for t, rows in enumerate(tasks):
            size = micro_batch or len(rows)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                yield Batch(m, t, len(part) / len(rows), step.routing_MGN[m], part)


def gather(step: Step, parts: list[tuple[Batch, float, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Losses [M, T] and gradients [M, T, G, N] of a step from its parts, added up in their order."""
    count, tasks = step.preferences_MT.shape
    losses_MT = np.zeros((count, tasks))
    gradients_MTGN = np.zeros((count, tasks, *step.routing_MGN.shape[1:]))
    for batch, loss, gradient_GN in parts:
        losses_MT[batch.preference, batch.task] += batch.share * loss
        gradients_MTGN[batch.preference, batch.task] += batch.share * gradient_GN
    return losses_MT, gradients_MTGN


class RoutedLosses:
    """Holds networks and data, merges anew where the routing weights changed, and differentiates.

    Args:
        routed: what to differentiate.
        threads: torch threads of this process.
    """

    def __init__(self, routed: RoutedStudy, *, threads: int | None = None) -> None:
        study, plan = routed.study, routed.plan
        self._tasks = study.training_tasks
        self._gradients = CoefficientGradients(
            study, plan.block_of, threads=threads, checkpoint_activations=routed.checkpoint_activations
        )
        self._rows = plan.rows(self._gradients.blocks)
        self._shape = (len(plan.modules), len(plan.models))
        self._gradients.merge_all(np.full(len(plan.models), plan.scaling))
        self._merged: np.ndarray | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Labelled examples of each task."""
        return tuple(self._gradients.evaluators.evaluator(index).examples for index in self._tasks)

    def gradient(self, batch: Batch) -> tuple[float, np.ndarray]:
        """The mean loss of a batch and its gradient in the routing weights, [G, N]; zero for modules without tensors.

        Raises:
            InputError: the task's evaluator has no loss that could be differentiated.
        """
        if self._merged is None or not np.array_equal(self._merged, batch.routing_GN):
            self._gradients.merge_blocks(batch.routing_GN[self._rows])
            self._merged = batch.routing_GN.copy()

        def mean_loss(evaluator: Evaluator, candidate: Candidate):  # type: ignore[no-untyped-def]
            return evaluator.loss(candidate, batch.rows)

        loss, found_BN = self._gradients.gradient(self._tasks[batch.task], mean_loss)
        gradient_GN = np.zeros(self._shape)
        gradient_GN[self._rows] = found_BN
        return loss, gradient_GN
