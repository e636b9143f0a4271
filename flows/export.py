"""Export a picked point of a finished run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mergecore.config import RESOLVED, parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.export import export_model
from mergecore.files import home_folder
from mergecore.pick import Pick
from mergecore.registry import did_you_mean
from mergecore.run_folder import RunRecord
from mergecore.study import prepare


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
    resolved = record.config.get(RESOLVED) or {}
    study = prepare(parse_config(record.config, where="the run's config.yaml"), home_folder())
    expected = resolved.get("fingerprints", {}).get("task_matrix")
    if study.matrix_key != expected:
        raise InputError(
            "The base or the models have changed since this run.",
            "Run the study again; only what changed is evaluated.",
        )
    c_N = np.array(list(choice.coefficients.values()))
    head, adapted = None, None
    if task is not None:
        names = [item.task.name for item in study.measured if not item.held_out]
        if task not in names:
            raise InputError(f"This run has no task {task!r}.", did_you_mean(task, names))
        index = names.index(task)
        head = study.measured[index].head
        adapted = CandidateEvaluator(study).adapted_tensors(c_N, index)
    export_model(study, c_N, folder, measured=choice.metrics, head=head, adapted=adapted)
