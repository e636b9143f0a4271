"""Hand over one point of a finished run as a checkpoint."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from mergecore.choice import Choice, choose
from tasks.export import publish_export, register_checkpoint, verify_checkpoint, write_checkpoint


@flow(name="export", flow_run_name="{folder}", persist_result=False)
def export_flow(
    folder: str,
    choice: Choice,
    out: str | None = None,
    task: str | None = None,
    verify: bool = True,
    register_as: str | None = None,
    alias: str = "candidate",
) -> str:
    """A point of a front, chosen as `mergecore pick` does, as a checkpoint.

    Args:
        folder: of the finished run or comparison.
        choice: which point.
        out: where the checkpoint goes; the same one may be there already. Default: a name of its own in ``exports``.
        task: write the network of this task, with its own head.
        verify: reload the checkpoint and measure it again: the numbers must be those of the run.
        register_as: name in MLflow's model registry; without one it is not registered.
        alias: that moves to the registered version.

    Returns:
        The checkpoint's folder.
    """
    record, point = choose(Path(folder), choice)
    checkpoint = write_checkpoint(record, point, Path(out) if out else None, task)
    if verify:
        verify_checkpoint(checkpoint)
    registered = register_checkpoint(checkpoint, register_as, alias) if register_as else None
    publish_export(record, point, checkpoint, registered)
    return str(checkpoint)
