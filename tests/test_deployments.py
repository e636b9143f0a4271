"""What ships for deployment: every config is valid, every entrypoint exists and takes the parameters it is given."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from string import Template
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


COMPOSE = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text())
KUBERAY = list(yaml.safe_load_all((ROOT / "deployments" / "kuberay.yaml").read_text()))
PINNED = re.compile(r"[a-z0-9./-]+:\d+(\.\d+)+[a-z0-9.-]*")


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Every mapping's keys and what they hold, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)


def test_images_are_pinned_to_one_version() -> None:
    images = {image for place in (COMPOSE, KUBERAY) for key, image in leaves(place) if key == "image"}
    assert all(PINNED.fullmatch(image) for image in images)
    own = {image.rpartition(":")[2] for image in images if "mergecore" in image}
    assert own == {tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]}
    dockerfile = (ROOT / "deployments" / "Dockerfile").read_text()
    assert PINNED.fullmatch(re.findall(r"^FROM (\S+)$", dockerfile, re.MULTILINE)[0])
    (ray,) = (version for place in KUBERAY for key, version in leaves(place) if key == "rayVersion")
    assert f"ray=={ray}\n" in (ROOT / "constraints.txt").read_text()


def test_containers_listen_on_loopback_have_checks_and_hold_no_secret() -> None:
    services = COMPOSE["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"deploy"}
    assert all(service["networks"] == ["inside"] for service in services.values() if "ports" not in service)
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for key, value in leaves(COMPOSE):
        if "PASSWORD" in key or "TOKEN" in key:
            assert re.fullmatch(r"\$\{\w+:\?\}", value)
        elif isinstance(value, str) and "://" in value and "@" in value:
            assert re.search(r"://\w+:\$\{\w+:\?\}@", value)
    given = {entry["name"]: entry for place in KUBERAY for key, env in leaves(place) if key == "env" for entry in env}
    secret = ("PREFECT_API", "MLFLOW", "RAY_AUTH_TOKEN")
    assert all("valueFrom" in given[name] for name in given if name.startswith(secret))


def test_every_process_of_ray_has_the_token() -> None:
    ray = [service for service in COMPOSE["services"].values() if "ray start" in str(service.get("command"))]
    assert len(ray) == 3
    for service in ray:
        assert (
            service["environment"].items()
            >= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "${RAY_AUTH_TOKEN:?}"}.items()
        )
    pods = [containers for place in KUBERAY for key, containers in leaves(place) if key == "containers"]
    assert len(pods) == 4
    for (container,) in pods:
        given = {entry["name"]: entry for entry in container["env"]}
        assert given["RAY_AUTH_MODE"]["value"] == "token"
        assert "RAY_AUTH_TOKEN" in given
    text = (ROOT / "deployments" / "ray-cluster.yaml").read_text()
    (named,) = re.findall(r"envsubst '(.+)' <", text)
    used = set(re.findall(r"\$\{(\w+)\}", text))
    assert {f"${name}" for name in used} == set(named.split())  # what Ray itself fills in stays
    assert "RAY_AUTH_TOKEN" in used


@pytest.mark.parametrize("program", ["prefect server start", "prefect worker start", "mlflow server", "ray start"])
def test_commands_of_containers_exist(program: str) -> None:
    words = program.split()
    run = [sys.executable, "-m", "ray.scripts.scripts" if words[0] == "ray" else words[0], *words[1:], "--help"]
    known = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}).stdout
    texts = [value for key, value in leaves(COMPOSE) if key == "command"]
    texts += [value for place in KUBERAY for key, values in leaves(place) if key == "args" for value in values]
    texts += re.findall(r"- (ray start .*)", (ROOT / "deployments" / "ray-cluster.yaml").read_text())
    used = [part for text in texts for part in re.split(r"&&|\bexec\b", text) if program in part]
    flags = {flag for part in used for flag in re.findall(r"--[a-z-]+", part)}
    assert flags
    assert {flag for flag in flags if flag not in known} == set()


def test_ray_accepts_the_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (ROOT / "deployments" / "ray-cluster.yaml").read_text()
    cluster = yaml.safe_load(
        Template(text).safe_substitute(MERGECORE_HEAD="10.0.0.10", SSH_USER="me", RAY_AUTH_TOKEN="t")
    )
    validate_config(prepare_config(cluster))
    assert PINNED.fullmatch(cluster["docker"]["image"])


def test_every_flow_is_deployed() -> None:
    deployed = {deployment["entrypoint"].rpartition(":")[2] for deployment in DEPLOYMENTS}
    others = {"quickstart_flow", "compare_flow", "export_flow", "package_flow"}
    assert {FLOWS.get(method).fn.__name__ for method in FLOWS} | others == deployed


def test_no_two_deployments_write_one_folder() -> None:
    places = [place for deployment in DEPLOYMENTS if (place := deployment["parameters"].get("out"))]
    assert len(places) == len(set(places)) == len(DEPLOYMENTS) - 2  # exports name their own
