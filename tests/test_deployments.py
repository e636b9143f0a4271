"""What ships for deployment: every config is valid, every entrypoint exists and takes the parameters it is given."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import yaml

from flows import FLOWS
from mergecore.config_file import load_config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "deployments" / "configs").glob("*.yaml"))
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_configs_are_valid(file: Path) -> None:
    assert load_config(file).models


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_deployments_point_at_flows_and_fit_their_parameters(deployment: dict) -> None:
    file, name = deployment["entrypoint"].split(":")
    flow = getattr(import_module(file.removesuffix(".py").replace("/", ".")), name)
    flow.validate_parameters({**deployment["parameters"], "out": None})
    assert deployment["description"]
    assert all(schedule["active"] is False for schedule in deployment["schedules"])


def test_every_flow_is_deployed() -> None:
    deployed = {deployment["entrypoint"].rpartition(":")[2] for deployment in DEPLOYMENTS}
    assert {FLOWS.get(method).fn.__name__ for method in FLOWS} <= deployed
