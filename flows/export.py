"""Export a picked point of a finished run, or of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mergecore.comparison.methods import method_study
from mergecore.comparison.pick import compared_method
from mergecore.config_file import RESOLVED, parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.export import export_model
from mergecore.files import home_folder
from mergecore.pareto_moe.routed_study import trained_study
from mergecore.pick import Pick
from mergecore.registry import did_you_mean
from mergecore.run_folder import RunRecord
from mergecore.study import Study, open_study, prepare


def run_study(record: RunRecord) -> Study:
    """The study of a finished run, prepared again, with its trained routers where it has some.

    Raises:
        InputError: the sources are gone, or their content is no longer what the run merged.
    """
    study = prepare(parse_config(record.config, where="the run's config.yaml"), home_folder())
    _check_content(study, record.config)
    return trained_study(study) if study.config.search.method == "pwe_moe" else study


def export_pick(record: RunRecord, choice: Pick, folder: Path, task: str | None = None) -> None:
    """Merge the picked coefficients and write the checkpoint.

    Args:
        record: the finished run.
        choice: the picked point.
        folder: where to.
        task: write the network as this task measures it: with its head, and with what its evaluator adapts after
            merging (batch-norm statistics, a refitted head); None writes the base's network.

    Raises:
        InputError: the sources are gone, or their content is no longer what the run merged; no such task.
    """
    _export(run_study(record), choice, folder, task)


def export_method(record: RunRecord, choice: Pick, folder: Path, task: str | None = None) -> None:
    """The same for a point of one method of a comparison.

    Args:
        record: from `mergecore.comparison.pick.read_method`.
        choice: the picked point.
        folder: where to.
        task: as for `export_pick`.

    Raises:
        InputError: as for `export_pick`.
    """
    config = parse_config(record.config, where="the comparison's config.yaml")
    method = compared_method(config, record.summary["method"])
    config, home = config.untransformed().first(record.summary["merged"]), home_folder()
    opened = open_study(config, home)
    plain = prepare(config, home, opened=opened)
    _check_content(plain, record.config)
    study, _ = method_study(method, plain, opened)
    _export(study, choice, folder, task, found_by=method.label)


def _check_content(study: Study, config: dict[str, Any]) -> None:
    """Raise ``InputError`` when base or models are no longer what was merged."""
    then = (config.get(RESOLVED) or {}).get("fingerprints", {})
    models = {name: print_ for name, print_ in then.get("models", {}).items() if name in study.fingerprints["models"]}
    if (study.fingerprints["base"], study.fingerprints["models"]) != (then.get("base"), models):
        raise InputError(
            "The base or the models have changed since this run.",
            "Run the study again; only what changed is evaluated.",
        )


def _export(study: Study, choice: Pick, folder: Path, task: str | None, found_by: str | None = None) -> None:
    c_N = np.array(list(choice.coefficients.values()))
    head, adapted = None, None
    if task is not None:
        names = [item.task.name for item in study.measured if item.role == "search"]
        if task not in names:
            raise InputError(f"This run has no task {task!r}.", did_you_mean(task, names))
        index = names.index(task)
        head = study.measured[index].head
        adapted = CandidateEvaluator(study).adapted_tensors(c_N, index)
    export_model(study, c_N, folder, measured=choice.metrics, head=head, adapted=adapted, task=task, found_by=found_by)
