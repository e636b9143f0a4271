"""MLflow's model registry: merged checkpoints go in with their lineage, and come out as sources of other studies.

The registry is that of MLFLOW_TRACKING_URI, or without it the one beside the local runs.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergecore.config_file import parse_config
from mergecore.errors import InputError, first_line
from mergecore.export import FACTS, export_facts
from mergecore.files import atomic_folder, file_digest
from mergecore.patterns import STAR
from tasks.tracking import experiment_id, metric_name, mlflow_client, quiet, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
CONTENT = "mergecore.content"
KINDS = ("test", "real", "predicted")
"""Which metrics of a point speak for it: held-out ones before those of the search's data."""


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes:
        name: of the model.
        version: its number, as text.
        metrics: task to metric, of one kind.
    """

    name: str
    version: str
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """What a study's config calls it."""
        return f"models:/{self.name}/{self.version}"


def register(folder: Path, name: str, home: Path, *, alias: str = CANDIDATE) -> Registered:
    """Put an exported checkpoint into the registry; one that is there already only gets the alias.

    The version belongs to the run that found it, where this MLflow has that run, and its tags hold the lineage: base
    and models with their content, coefficients, method and metrics.

    Args:
        folder: that `mergecore.export.export_model` wrote.
        name: of the registered model; made if missing.
        home: MERGECORE_HOME.
        alias: that moves to this version.

    Raises:
        InputError: no such checkpoint, or a name or alias that MLflow refuses.
    """
    facts = export_facts(folder)
    client = mlflow_client(tracking_uri(None, home))
    content = _content(folder)
    with _refusals(client, f"register the checkpoint as {name!r}"):
        version = _known_version(client, name, content)
        if version is None:
            run_id = _run(client, facts, home)
            place = f"checkpoint-{content[:12]}"
            client.log_artifacts(run_id, str(folder), place)
            source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
            tags = {metric_name(key): value[:5000] for key, value in _lineage(facts).items()} | {CONTENT: content}
            created = client.create_model_version(
                name, source, run_id, tags=tags, description=_sentence(facts), await_creation_for=0
            )
            version = str(created.version)
        client.set_registered_model_alias(name, alias, version)
    return Registered(name, version, _metrics(facts))


def promote(name: str, home: Path, *, version: str | None = None) -> tuple[Registered | None, Registered]:
    """Move the alias ``champion`` to a version.

    Args:
        name: of the registered model.
        home: MERGECORE_HOME.
        version: which one; default: the one that is ``candidate``.

    Returns:
        The version that was champion before, if there was one, and the one that is now.

    Raises:
        InputError: there is no such model or version.
    """
    client = mlflow_client(tracking_uri(None, home))
    with _refusals(client, f"promote {name!r}"):
        aliases = client.get_registered_model(name).aliases
        chosen = version or aliases.get(CANDIDATE)
        if chosen is None:
            raise InputError(f"No version of {name!r} is {CANDIDATE!r}.", "Name one with --version.")
        after = _read(client, name, str(chosen))
        before = _read(client, name, str(aliases[CHAMPION])) if CHAMPION in aliases else None
        client.set_registered_model_alias(name, CHAMPION, after.version)
    return before, after


def find_models(rest: str, home: Path) -> list[tuple[str, str]]:
    """What ``models:/<name>@<alias>`` means now, as `mergecore.patterns.FINDERS` has it.

    A name with a `*` stands for every registered model that matches and has the alias.

    Raises:
        InputError: it is not of that form, or MLflow has no such model or alias.
    """
    name, alias, version = _parsed(rest)
    if version:
        return [("", f"models:{rest}")]
    client = mlflow_client(tracking_uri(None, home))
    with _refusals(client, f"find 'models:{rest}'"):
        if STAR not in name:
            return [("", f"models:/{name}/{client.get_model_version_by_alias(name, alias).version}")]
        before, _, after = name.partition(STAR)
        star = re.compile(re.escape(before) + r"([^*]*)" + re.escape(after))
        matches = [(match[1], model) for model in _all_models(client) if (match := star.fullmatch(model.name))]
        found = [(part, f"models:/{m.name}/{m.aliases[alias]}") for part, m in matches if alias in m.aliases]
    return sorted(found)


def model_folder(rest: str, home: Path) -> Path:
    """The files of ``models:/<name>/<version>``, fetched once, as `mergecore.checkpoints.checkpoint.SOURCES` has it.

    Raises:
        InputError: it is not of that form, or MLflow has no such version.
    """
    name, alias, version = _parsed(rest)
    if alias:
        ((_, source),) = find_models(rest, home)
        version = source.rpartition("/")[2]
    uri = tracking_uri(None, home)
    kept = home / "registered" / hashlib.sha256(f"{uri}\n{name}\n{version}".encode()).hexdigest()[:32]
    if kept.is_dir():
        return kept
    client = mlflow_client(uri)
    with _refusals(client, f"fetch 'models:{rest}'"):
        place = client.get_model_version_download_uri(name, version)
        if place.startswith("file:") or "://" not in place:
            return Path(_download(client, place, None))
        with atomic_folder(kept) as temporary:
            _download(client, place, temporary)
    return kept


def _download(client: MlflowClient, place: str, folder: Path | None) -> str:
    from mlflow.artifacts import download_artifacts

    with quiet():
        return download_artifacts(
            artifact_uri=place, dst_path=None if folder is None else str(folder), tracking_uri=client.tracking_uri
        )


def _parsed(rest: str) -> tuple[str, str, str]:
    """Name, alias, version of what follows ``models:``; one of the last two is empty."""
    match = re.fullmatch(r"/([^/@]+)(?:@([^/@]+)|/(\d+))", rest)
    if match is None:
        raise InputError(
            f"The source 'models:{rest}' names no registered model.",
            "Write 'models:/<name>@<alias>' or 'models:/<name>/<version>'.",
        )
    return match[1], match[2] or "", match[3] or ""


@contextmanager
def _refusals(client: MlflowClient, wish: str) -> Iterator[None]:
    """What MLflow refuses, as one sentence."""
    from mlflow.exceptions import MlflowException

    try:
        with quiet():
            yield
    except MlflowException as error:
        raise InputError(f"Cannot {wish}, with MLflow at {client.tracking_uri!r}: {first_line(error)}.") from None


def _all_models(client: MlflowClient) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = client.search_registered_models(max_results=100, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _known_version(client: MlflowClient, name: str, content: str) -> str | None:
    """The version with this content; the model is made when it is missing."""
    if not any(model.name == name for model in _all_models(client)):
        client.create_registered_model(name)
        return None
    same = client.search_model_versions(f"tags.`{CONTENT}` = '{content}'")
    return next((str(item.version) for item in same if item.name == name), None)


def _run(client: MlflowClient, facts: Mapping[str, Any], home: Path) -> str:
    """The run that found the checkpoint, or a new one where this MLflow does not know it."""
    from mlflow.exceptions import MlflowException

    try:
        if facts.get("run_id"):
            return client.get_run(facts["run_id"]).info.run_id
    except MlflowException:
        pass  # logged to another server
    config = parse_config(facts["config"], where=FACTS)
    experiment = experiment_id(client, config.tracking.experiment, home)
    run = client.create_run(experiment, int(time.time() * 1000), run_name=f"{config.name} checkpoint"[:250])
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def _read(client: MlflowClient, name: str, version: str) -> Registered:
    tags = client.get_model_version(name, version).tags
    return Registered(name, version, {key[7:]: float(tags[key]) for key in tags if key.startswith("metric.")})


def _lineage(facts: Mapping[str, Any]) -> dict[str, str]:
    config, prints = facts["config"], facts.get("fingerprints") or {}
    lineage = {"method": facts.get("method", ""), "transform": config["merge"]["transform"], "base": config["base"]}
    lineage["base.content"] = prints.get("base", "")
    for model in config["models"]:
        lineage[f"model.{model['name']}"] = model["source"]
        lineage[f"model.{model['name']}.content"] = prints.get("models", {}).get(model["name"], "")
    lineage |= {f"coefficient.{name}": repr(c) for name, c in facts["coefficients"].items()}
    return lineage | {f"metric.{task}": repr(value) for task, value in _metrics(facts).items()}


def _metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that speak for the checkpoint; empty where none was measured."""
    for kind in KINDS:
        found = {task: value for task, value in facts["measured"].get(kind, {}).items() if value is not None}
        if found:
            return found
    return {}


def _sentence(facts: Mapping[str, Any]) -> str:
    models = ", ".join(model["name"] for model in facts["config"]["models"])
    return f"A merge of {models} over {facts['config']['base']}, found by {facts.get('method', '')}."[:4000]


def _content(folder: Path) -> str:
    """One digest of every file's name and bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = [f"{path.relative_to(folder)} {file_digest(path)}" for path in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
