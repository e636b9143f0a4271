"""Package the front of a finished run as one model that is asked with a preference."""

from __future__ import annotations

from pathlib import Path

from flows.export import run_study
from mergecore.run_folder import read_run
from mergecore.serving import front_points
from tasks.serving import save_front


def package_front(run: Path, folder: Path) -> None:
    """Write an MLflow model of all that a run's front can be.

    Args:
        run: folder of the finished run.
        folder: where to; must not exist or be empty.

    Raises:
        InputError: no finished run; its sources are gone or changed; no task that answers inputs; the folder is in use.
    """
    record = read_run(run)
    study = run_study(record)
    save_front(study, None if study.routers is not None else front_points(record), folder)
