"""Unloading: a preference becomes scaling coefficients of every module, and with them an ordinary network.

Shape suffixes: T tasks, N models, G modules with a router, B blocks of the merge, P stored elements.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from mergecore.options import read_options
from mergecore.pareto_moe import ROUTERS
from mergecore.pareto_moe.rays import checked_preference
from mergecore.pareto_moe.routers import Parameters, Router
from mergecore.task_matrix import BlockMap, Layout, TaskMatrix

FACTS = "mergecore"
"""The one entry of the metadata of a file of routers."""
REST = ""
"""The block of everything that has no router."""


@dataclass(frozen=True)
class RouterPlan:
    """What routers are, without their parameters; plain data.

    Attributes:
        modules: names of the G modules, in the order of depth.
        owners: name of a tensor to its module; tensors without one are merged by task arithmetic.
        tasks: names of the T entries of a preference.
        models: names of the N models.
        router: registered name of the function.
        options: its options.
        scaling: lambda, of the start and of everything without a router.
    """

    modules: tuple[str, ...]
    owners: Mapping[str, str]
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    router: str
    options: Mapping[str, Any]
    scaling: float

    def build(self) -> Router:
        """The function.

        Raises:
            InputError: unknown router or option.
        """
        cls = ROUTERS.get(self.router)
        options = read_options(cls.Options, self.options, owner=f"The router {self.router!r}", where="router_options")
        router: Router = cls(
            options,
            modules=len(self.modules),
            tasks=len(self.tasks),
            models=len(self.models),
            scaling=self.scaling,
        )
        return router

    def block_of(self, name: str) -> str | None:
        """The module that a tensor belongs to, None where it has no router."""
        return self.owners.get(name)

    def rows(self, blocks: BlockMap) -> list[int]:
        """For each block of a merge the number of its module."""
        numbers = {name: g for g, name in enumerate(self.modules)}
        return [numbers[name] for name in blocks.names]

    def to_json(self) -> str:
        """All of it, for a file."""
        return json.dumps({**vars(self), "owners": dict(self.owners), "options": dict(self.options)})

    @staticmethod
    def from_json(text: str) -> RouterPlan:
        """What `to_json` wrote."""
        found = json.loads(text)
        return RouterPlan(**{**found, **{key: tuple(found[key]) for key in ("modules", "tasks", "models")}})


class Unloading:
    """Trained routers over the tensors of one task matrix.

    Args:
        plan: what the routers are.
        parameters: theirs.
        layout: of the task matrix.
    """

    def __init__(self, plan: RouterPlan, parameters: Parameters, layout: Layout) -> None:
        self.plan = plan
        self._router, self._parameters = plan.build(), parameters
        self.blocks = layout.blocks(lambda name: plan.block_of(name) or REST)
        numbers = {name: g for g, name in enumerate(plan.modules)} | {REST: len(plan.modules)}
        self._rows = [numbers[name] for name in self.blocks.names]

    def routing(self, preference: np.ndarray) -> np.ndarray:
        """Routing weights [G, N] of every module for one preference.

        Raises:
            InputError: the preference is not on the simplex.
        """
        r_T = torch.from_numpy(checked_preference(preference, len(self.plan.tasks)))
        with torch.inference_mode():
            return self._router.weights(self._parameters, r_T).numpy().copy()

    def coefficients(self, preference: np.ndarray) -> np.ndarray:
        """Scaling coefficients [B, N] of ``blocks`` for one preference.

        Raises:
            InputError: the preference is not on the simplex.
        """
        rest_N = np.full(len(self.plan.models), self.plan.scaling)
        return np.vstack([self.routing(preference), rest_N])[self._rows]

    def merge(self, matrix: TaskMatrix, preference: np.ndarray, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """The network's merged tensors for one preference, [P], by the one merge kernel."""
        return matrix.merge(self.coefficients(preference), out=out, blocks=self.blocks)


def read_routers(file: Path) -> tuple[RouterPlan, Parameters]:
    """Routers that `mergecore.pareto_moe.training` wrote."""
    with safe_open(file, framework="pt") as handle:
        plan = RouterPlan.from_json(json.loads(handle.metadata()[FACTS])["plan"])
        names = [name for name in handle.keys() if name.startswith("router.")]  # noqa: SIM118
        return plan, {name.removeprefix("router."): handle.get_tensor(name) for name in names}


def open_unloading(file: Path, layout: Layout) -> Unloading:
    """The trained routers in ``file`` over the tensors of one task matrix."""
    return Unloading(*read_routers(file), layout)
