"""Package the front of a finished run as one model that is asked with a preference."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from tasks.serving import package_front


@flow(name="package", flow_run_name="{folder}", persist_result=False)
def package_flow(folder: str, out: str) -> str:
    """An MLflow model of all that a run's front can be.

    Args:
        folder: of the finished run.
        out: where to; must not exist or be empty.

    Returns:
        The model's folder.
    """
    package_front(Path(folder), Path(out))
    return out
