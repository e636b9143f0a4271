"""What ships for deployment: every config is valid, every entrypoint exists and takes the parameters it is given."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from flows import FLOWS
from flows.map import map_flow
from mergecore.config_file import load_config, parse_config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "deployments" / "configs").glob("*.yaml"))
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def refusals(flow: Flow[..., Any], parameters: dict[str, Any]) -> list[str]:
    """What a Prefect server has against the parameters of a deployment of the flow."""
    schema = parameter_schema(flow).model_dump_for_openapi()
    return [error.message for error in validate(parameters, schema, raise_on_error=False, preprocess=True)]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_configs_are_valid_as_files_and_as_parameters(file: Path) -> None:
    assert load_config(file).models
    assert not refusals(map_flow, {"config": yaml.safe_load(file.read_text())})


@pytest.mark.parametrize(
    "changes",
    [
        {"search": {"samples": 7}},
        {"search": {"method": "bayesian_map", "batch": 2}},
        {"budget": {"stop": True}},
        {"budget": {"stop": {"gap": 0.1}}},
        {"compare": {"methods": ["map", {"method": "ties", "label": "t"}]}},
    ],
)
def test_short_forms_of_a_config_are_parameters_too(changes: dict[str, Any]) -> None:
    study = yaml.safe_load(CONFIGS[0].read_text()) | changes
    assert parse_config(study).models
    assert not refusals(map_flow, {"config": study})
    assert refusals(map_flow, {"config": study | {"budget": {"stop": "soon"}}})


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_deployments_point_at_flows_and_fit_their_parameters(deployment: dict) -> None:
    file, name = deployment["entrypoint"].split(":")
    flow = getattr(import_module(file.removesuffix(".py").replace("/", ".")), name)
    flow.validate_parameters({**deployment["parameters"], "out": None})
    assert not refusals(flow, deployment["parameters"])
    assert deployment["description"]
    assert deployment["work_pool"]["name"] == "merging"
    assert deployment["concurrency_limit"]["limit"] == 1
    assert all(schedule["active"] is False for schedule in deployment["schedules"])


def test_every_flow_is_deployed() -> None:
    deployed = {deployment["entrypoint"].rpartition(":")[2] for deployment in DEPLOYMENTS}
    others = {"quickstart_flow", "compare_flow", "export_flow", "package_flow"}
    assert {FLOWS.get(method).fn.__name__ for method in FLOWS} | others == deployed


def test_no_two_deployments_write_one_folder() -> None:
    places = [place for deployment in DEPLOYMENTS if (place := deployment["parameters"].get("out"))]
    assert len(places) == len(set(places)) == len(DEPLOYMENTS) - 2  # exports name their own
