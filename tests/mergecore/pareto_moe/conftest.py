"""Routers of a pico study, and a study whose losses are known functions of the coefficients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergecore.config_file import parse_config
from mergecore.pareto_moe.unloading import RouterPlan
from mergecore.study import Study, prepare


def plan_of(modules: int = 3, tasks: int = 2, models: int = 2, **changes: Any) -> RouterPlan:
    """A plan whose modules own tensors of their own names."""
    names = tuple(f"m{g}" for g in range(modules))
    own: dict[str, Any] = {
        "modules": names,
        "owners": {f"{name}.weight": name for name in names},
        "tasks": tuple(f"t{t}" for t in range(tasks)),
        "models": tuple(f"v{n}" for n in range(models)),
        "router": "mlp",
        "options": {},
        "scaling": 0.3,
    }
    return RouterPlan(**{**own, **changes})


@pytest.fixture
def routed_config(pico_config: dict[str, Any]) -> dict[str, Any]:
    """The pico study, to be searched by PWE-MoE with a router for each linear layer of its one block."""
    tasks = [{**task, "metric": "accuracy"} for task in pico_config["tasks"]]
    search = {"method": "pwe_moe", "modules": ["*.mlp.*", "*attention*", "*intermediate*", "*.output"], "steps": 6}
    return {**pico_config, "tasks": tasks, "search": {**search, "batch_size": 4, "samples": 3}}


@pytest.fixture
def routed_study(routed_config: dict[str, Any], home: Path) -> Study:
    """It, prepared."""
    return prepare(parse_config(routed_config), home)
