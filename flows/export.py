"""Export a picked point of a finished run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mergecore.config import RESOLVED, parse_config
from mergecore.errors import InputError
from mergecore.export import export_model
from mergecore.files import home_folder
from mergecore.pick import Pick
from mergecore.run_folder import RunRecord
from mergecore.study import prepare


def export_pick(record: RunRecord, choice: Pick, folder: Path, head: str | None = None) -> None:
    """Merge the picked coefficients and write the checkpoint.

    Raises:
        InputError: the sources are gone, or their content is no longer what the run merged.
    """
    resolved = record.config.get(RESOLVED) or {}
    study = prepare(parse_config(record.config, where="the run's config.yaml"), home_folder())
    expected = resolved.get("fingerprints", {}).get("task_matrix")
    if study.matrix_key != expected:
        raise InputError(
            "The base or the models have changed since this run.",
            "Run the study again; only what changed is evaluated.",
        )
    export_model(study, np.array(list(choice.coefficients.values())), folder, measured=choice.metrics, head=head)
