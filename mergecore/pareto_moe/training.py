"""Training of the routers (PWE-MoE, Algorithm 1) as ask and tell: who differentiates the losses is not its matter.

Everything random follows from the seed and the number of the step, and what was learned is kept as arrays, so a
training that was killed goes on from its last checkpoint to the same numbers.

Shape suffixes: S steps, M preferences of one step, T tasks, N models, G modules, B examples of a batch.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from mergecore.errors import NumericalError
from mergecore.files import atomic_write
from mergecore.pareto_moe.routers import Parameters
from mergecore.pareto_moe.scalarisation import SCALARISATIONS, Scalarisation, non_uniformity
from mergecore.pareto_moe.training_options import TrainingOptions
from mergecore.pareto_moe.unloading import FACTS, RouterPlan

VERSION = 1
"""Raise it when code changes what is learned."""
INITIAL, PREFERENCES, BATCHES = 0, 1, 2
"""What a stream of random numbers is for."""
HISTORY = ("losses_ST", "non_uniformity_S", "rate_S", "routed_L", "routing_LGN")
"""What a training remembers of its steps."""
KEPT_ROUTINGS = 200
"""How many of the routing weights on the way are kept, roughly."""
MENDED = "Lower search.learning_rate; nothing of this training is used."
LAST_RATE = 0.1
"""Of the first learning rate, at the end of the cosine (PWE-MoE, Section 5.1)."""


@dataclass(frozen=True)
class Step:
    """What one step differentiates.

    Attributes:
        number: of the step, from 0.
        preferences_MT: on the simplex.
        routing_MGN: routing weights of every module for each of them.
        rows: for each preference and task the numbers of its batch's examples, [B].
    """

    number: int
    preferences_MT: np.ndarray
    routing_MGN: np.ndarray
    rows: tuple[tuple[np.ndarray, ...], ...]


class RouterTraining:
    """Ask for a step, tell its losses and their gradients in the routing weights, until there are no more steps.

    Args:
        plan: what the routers are.
        options: how they are trained.
        sizes: number of labelled examples of each task.
        seed: of everything random.

    Attributes:
        plan, options: as given.
        done: steps that were told.
        losses_ST, rate_S, non_uniformity_S: of each step: losses (the mean over its preferences), the learning rate,
            and how far the losses were from the preference (0: l_t proportional to 1 / r_t).
        routed_L, routing_LGN: numbers of some steps, and the routing weights at equal preference after each of them.
    """

    def __init__(self, plan: RouterPlan, options: TrainingOptions, *, sizes: tuple[int, ...], seed: int) -> None:
        self.plan, self.options = plan, options
        self._sizes, self._seed = sizes, seed
        self._router = plan.build()
        drawn = self._router.initial(np.random.default_rng([seed, INITIAL]))
        self._parameters = {name: tensor.requires_grad_(True) for name, tensor in drawn.items()}
        self._optimiser = self._new_optimiser()
        self._scalarisation: Scalarisation = SCALARISATIONS.get(options.scalarisation)()
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self.done = 0
        self.losses_ST = np.zeros((0, len(plan.tasks)))
        self.non_uniformity_S = np.zeros(0)
        self.rate_S = np.zeros(0)
        self.routed_L = np.zeros(0, dtype=np.int64)
        self.routing_LGN = np.zeros((0, len(plan.modules), len(plan.models)))

    @property
    def parameters(self) -> Parameters:
        """The routers' parameters, apart from the training."""
        return {name: tensor.detach().clone() for name, tensor in self._parameters.items()}

    @property
    def parameter_count(self) -> int:
        """Trained numbers of all routers."""
        return sum(tensor.numel() for tensor in self._parameters.values())

    @property
    def fallbacks(self) -> int:
        """Steps in which exact Pareto optimal search had no solution and linear scalarisation stood in."""
        return self._scalarisation.fallbacks

    def ask(self) -> Step | None:
        """What to differentiate next; None when training is over.

        Raises:
            NumericalError: the routers give weights that are not finite.
        """
        options = self.options
        if self.done >= options.steps:
            return None
        rng = np.random.default_rng([self._seed, PREFERENCES, self.done])
        tasks = len(self.plan.tasks)
        preferences_MT = rng.dirichlet(np.full(tasks, options.concentration), size=options.preferences_per_step)
        with torch.inference_mode():
            routing = [self._router.weights(self._parameters, torch.from_numpy(r)).numpy() for r in preferences_MT]
        if not np.isfinite(np.array(routing, dtype=np.float32)).all():  # merges are float32
            raise NumericalError(
                f"The training of the routers diverged: routing weights are not finite in step {self.done}.", MENDED
            )
        first = self.done * options.preferences_per_step
        rows = tuple(
            tuple(self._batch(task, first + m) for task in range(tasks)) for m in range(options.preferences_per_step)
        )
        return Step(self.done, preferences_MT, np.stack(routing), rows)

    def tell(self, step: Step, losses_MT: np.ndarray, gradients_MTGN: np.ndarray) -> None:
        """Take the step.

        Args:
            step: what was asked for.
            losses_MT: of its batches.
            gradients_MTGN: the losses' gradients in the routing weights.

        Raises:
            NumericalError: a loss or a gradient is not finite; nothing has changed.
        """
        self._check_finite(step, losses_MT, gradients_MTGN)
        self._optimiser.zero_grad()
        uneven = []
        for r_T, losses_T, gradients_TGN in zip(step.preferences_MT, losses_MT, gradients_MTGN, strict=True):
            routing_GN = self._router.weights(self._parameters, torch.from_numpy(r_T))
            gram_TT = self._gram(routing_GN, gradients_TGN) if self._scalarisation.needs_gradients else None
            weights_T = self._scalarisation.weights(losses_T, r_T, gram_TT)
            gradient_GN = np.tensordot(weights_T, gradients_TGN, axes=1) / len(losses_MT)
            routing_GN.backward(torch.from_numpy(gradient_GN))
            uneven.append(non_uniformity(losses_T, r_T))
        rate = self._rate(step.number)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self.done += 1
        self.losses_ST = np.vstack([self.losses_ST, losses_MT.mean(axis=0)])
        self.non_uniformity_S = np.append(self.non_uniformity_S, np.mean(uneven))
        self.rate_S = np.append(self.rate_S, rate)
        if self.done % max(1, self.options.steps // KEPT_ROUTINGS) == 0 or self.done == self.options.steps:
            tasks = len(self.plan.tasks)
            self.routed_L = np.append(self.routed_L, self.done)
            self.routing_LGN = np.concatenate([self.routing_LGN, self.routing(np.full(tasks, 1 / tasks))[np.newaxis]])

    def save(self, file: Path) -> None:
        """All that is needed to go on, whole or not at all; `read_routers` reads the routers from it."""
        tensors = {f"router.{name}": tensor.detach() for name, tensor in self._parameters.items()}
        for (name, tensor), state in zip(
            self._parameters.items(), map(self._optimiser.state.__getitem__, self._parameters.values()), strict=True
        ):
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = state.get(moment, torch.zeros_like(tensor)).detach()
        tensors |= {name: torch.from_numpy(getattr(self, name)) for name in HISTORY}
        facts = json.dumps({"plan": self.plan.to_json(), "done": self.done, "fallbacks": self.fallbacks})
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        atomic_write(file, save(tensors, metadata={FACTS: facts}))  # one entry: several would be in any order

    def restore(self, file: Path) -> None:
        """Go on where ``file`` was saved, by a training with the same arguments."""
        with safe_open(file, framework="pt") as handle:
            facts = json.loads(handle.metadata()[FACTS])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        self.done, self._scalarisation.fallbacks = facts["done"], facts["fallbacks"]
        for name in HISTORY:
            setattr(self, name, tensors[name].numpy())
        with torch.no_grad():
            for name, tensor in self._parameters.items():
                tensor.copy_(tensors[f"router.{name}"])
                self._optimiser.state[tensor] = {
                    "step": torch.tensor(float(self.done)),
                    "exp_avg": tensors[f"exp_avg.{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
                }

    def routing(self, preference_T: np.ndarray) -> np.ndarray:
        """Routing weights [G, N] at one preference as the routers are now."""
        with torch.inference_mode():
            return self._router.weights(self._parameters, torch.from_numpy(preference_T)).numpy().copy()

    def _new_optimiser(self) -> torch.optim.Optimizer:
        options, trained = self.options, list(self._parameters.values())
        if options.weight_decay:
            return torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay)
        return torch.optim.Adam(trained, lr=options.learning_rate)

    def _rate(self, step: int) -> float:
        """A cosine from the learning rate to its tenth."""
        share = 0.5 * (1 + math.cos(math.pi * step / self.options.steps))
        return self.options.learning_rate * (LAST_RATE + (1 - LAST_RATE) * share)

    def _batch(self, task: int, number: int) -> np.ndarray:
        """Rows of a task's batch of that number: pass after pass over the data, each in an order of its own."""
        size = self._sizes[task]
        places = number * min(self.options.batch_size, size) + np.arange(min(self.options.batch_size, size))
        return np.array([self._order(task, place // size)[place % size] for place in places.tolist()])

    def _order(self, task: int, epoch: int) -> np.ndarray:
        if self._orders.get(task, (-1,))[0] != epoch:
            rng = np.random.default_rng([self._seed, BATCHES, task, epoch])
            self._orders[task] = epoch, rng.permutation(self._sizes[task])
        return self._orders[task][1]

    def _gram(self, routing_GN: torch.Tensor, gradients_TGN: np.ndarray) -> np.ndarray:
        """[T, T] inner products of the tasks' gradients in the routers' parameters."""
        flat = []
        for gradient_GN in gradients_TGN:
            own = torch.autograd.grad(
                routing_GN, list(self._parameters.values()), torch.from_numpy(gradient_GN), retain_graph=True
            )
            flat.append(torch.cat([part.reshape(-1) for part in own]))
        stacked = torch.stack(flat)
        return (stacked @ stacked.T).numpy()

    def _check_finite(self, step: Step, losses_MT: np.ndarray, gradients_MTGN: np.ndarray) -> None:
        bad_MT = ~np.isfinite(losses_MT) | ~np.isfinite(gradients_MTGN).all(axis=(2, 3))
        if bad_MT.any():
            m, task = np.argwhere(bad_MT)[0]
            what = "gradient" if np.isfinite(losses_MT[m, task]) else "loss"
            raise NumericalError(
                f"The training of the routers diverged: the {what} of the task {self.plan.tasks[task]!r} is not "
                f"finite in step {step.number}.",
                MENDED,
            )


def training_key(
    plan: RouterPlan,
    options: TrainingOptions,
    *,
    matrix_key: str,
    content: list[Any],
    sizes: tuple[int, ...],
    seed: int,
) -> str:
    """Content key of what a training learns.

    Args:
        plan, options, sizes, seed: as for `RouterTraining`.
        matrix_key: content of base and task vectors.
        content: of the labelled data and the networks, and what they are computed in, as JSON.
    """
    how = options.model_dump(exclude={"save_every", "checkpoint_activations"})
    facts = [VERSION, json.loads(plan.to_json()), how, matrix_key, content, list(sizes), seed]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
