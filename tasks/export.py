"""Stages after a run: a point of its front as a checkpoint, measured again, in the registry."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.comparison.methods import method_study
from mergecore.comparison.pick import compared_method
from mergecore.config_file import RESOLVED, parse_config
from mergecore.errors import EvaluationError, InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.export import FACTS, PARENTS, export_model
from mergecore.files import home_folder, read_json_mapping, writable_home
from mergecore.pareto_moe.routed_study import trained_study
from mergecore.pick import Pick
from mergecore.registry import did_you_mean
from mergecore.reloaded import reload_and_measure
from mergecore.run_record import RunRecord
from mergecore.study import Study, open_study, prepare
from tasks.artifacts import publish_point, tell
from tasks.model_registry import Registered, register


def run_study(record: RunRecord) -> Study:
    """The study of a finished run, prepared again, with its trained routers where it has some.

    Raises:
        InputError: the sources are gone, or their content is no longer what the run merged.
    """
    study = prepare(parse_config(record.config, where="the run's config.yaml"), writable_home())
    _check_content(study, record.config)
    return trained_study(study) if study.config.search.method == "pwe_moe" else study


def export_point(record: RunRecord, point: Pick, folder: Path, task: str | None = None) -> None:
    """Merge the chosen coefficients and write the checkpoint.

    Args:
        record: the finished run, or one method of a comparison (`mergecore.comparison.pick.read_method`).
        point: of its front.
        folder: where to; must not exist or be empty.
        task: write the network as this task measures it: with its head, and with what its evaluator adapts after
            merging (batch-norm statistics, a refitted head); None writes the base's network.

    Raises:
        InputError: the sources are gone, or their content is no longer what the run merged; no such task; the folder is
            in use.
    """
    if "merged" not in record.summary:
        _export(run_study(record), record, point, folder, task)
        return
    config = parse_config(record.config, where="the comparison's config.yaml")
    method = compared_method(config, record.summary["method"])
    config, home = config.untransformed().first(record.summary["merged"]), writable_home()
    opened = open_study(config, home)
    plain = prepare(config, home, opened=opened)
    _check_content(plain, record.config)
    study, _ = method_study(method, plain, opened)
    _export(study, record, point, folder, task, found_by=method.label)


def _check_content(study: Study, config: dict[str, Any]) -> None:
    """Raise ``InputError`` when base or models are no longer what was merged."""
    then = (config.get(RESOLVED) or {}).get("fingerprints", {})
    models = {name: print_ for name, print_ in then.get("models", {}).items() if name in study.fingerprints["models"]}
    if (study.fingerprints["base"], study.fingerprints["models"]) != (then.get("base"), models):
        raise InputError(
            "The base or the models have changed since this run.",
            "Run the study again; only what changed is evaluated.",
        )


def _export(
    study: Study, record: RunRecord, point: Pick, folder: Path, task: str | None, found_by: str | None = None
) -> None:
    c_N = np.array(list(point.coefficients.values()))
    head, adapted = None, None
    if task is not None:
        names = [item.task.name for item in study.measured if item.role == "search"]
        if task not in names:
            raise InputError(f"This run has no task {task!r}.", did_you_mean(task, names))
        index = names.index(task)
        head = study.measured[index].head
        adapted = CandidateEvaluator(study).adapted_tensors(c_N, index)
    export_model(
        study,
        c_N,
        folder,
        measured=point.metrics,
        head=head,
        adapted=adapted,
        task=task,
        found_by=found_by,
        run_id=(record.summary.get("tracking") or {}).get("run_id"),
    )


def place(record: RunRecord, *what: object) -> Path:
    """Where something that is made of a run goes unless the user says: the same place for the same thing only.

    Args:
        record: the finished run.
        what: tells it from all else that is made of these models.
    """
    prints = (record.config.get(RESOLVED) or {}).get("fingerprints")
    digest = hashlib.sha256(json.dumps([prints, *what], sort_keys=True).encode()).hexdigest()
    return Path("exports") / f"{record.name[:50]}-{digest[:12]}"


@task(name="write checkpoint", cache_policy=NO_CACHE)
def write_checkpoint(record: RunRecord, point: Pick, out: Path | None, only: str | None) -> Path:
    """`export_point`, by default to `place`; the same checkpoint that is there already stays."""
    folder = out or place(record, point.coefficients, only)
    known = read_json_mapping(folder / FACTS)
    prints = (record.config.get(RESOLVED) or {}).get("fingerprints", {})
    same = {"coefficients": point.coefficients, "task": only, "fingerprints": {k: prints.get(k) for k in PARENTS}}
    if known and all(known.get(key) == value for key, value in same.items()):
        tell(f"The checkpoint {str(folder)!r} is there already.")
    else:
        export_point(record, point, folder, only)
    return folder


@task(name="verify checkpoint", cache_policy=NO_CACHE)
def verify_checkpoint(folder: Path) -> None:
    """Reload it and measure it again.

    Raises:
        EvaluationError: some metric is not that of the run.
    """
    for found in reload_and_measure(folder, writable_home()):
        if not found.same:
            raise EvaluationError(
                f"{str(folder)!r} does not give the numbers of its run: {found.task} has {found.metric} "
                f"{found.found:.6g} instead of {found.expected:.6g}."
            )


@task(name="register checkpoint", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5)
def register_checkpoint(folder: Path, name: str, alias: str) -> Registered:
    """Into MLflow's model registry."""
    return register(folder, name, home_folder(), alias=alias)


@task(name="publish export", cache_policy=NO_CACHE)
def publish_export(record: RunRecord, point: Pick, folder: Path, registered: Registered | None) -> None:
    """Point, checkpoint and version in the Prefect UI."""
    publish_point(record, point, str(folder.resolve()), registered.source if registered is not None else None)
