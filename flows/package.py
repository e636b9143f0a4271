"""Package the front of a finished run as one model that is asked with a preference."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from mergecore.run_folder import read_run
from tasks.artifacts import tell
from tasks.export import place
from tasks.serving import package_front


@flow(name="package", flow_run_name="{folder}", persist_result=False)
def package_flow(folder: str, out: str | None = None) -> str:
    """An MLflow model of all that a run's front can be.

    Args:
        folder: of the finished run.
        out: where to; must not exist or be empty. Default: a name of its own in ``exports``, where it may be already.

    Returns:
        The model's folder.
    """
    record = read_run(Path(folder))
    target = Path(out) if out else place(record, "front", record.summary.get("study"))
    if out is None and target.exists():
        tell(f"The front of {folder!r} is there already: {str(target)!r}.")
    else:
        package_front(record, target)
    return str(target)
