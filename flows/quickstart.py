"""The quickstart: train small digit models, then plain MAP on them."""

from __future__ import annotations

from prefect import flow

from flows.map import map_flow
from mergecore.digits import study_config
from tasks.digits import train_digits


@flow(name="quickstart", flow_run_name="quickstart-{tasks}-tasks", persist_result=False)
def quickstart_flow(tasks: int = 3, seed: int = 0, out: str | None = None) -> str:
    """A Pareto front of real merged models in about two minutes, on two cores, without a network.

    Args:
        tasks: how many of the eight digit tasks, 2 to 8.
        seed: of training, samples and front.
        out: folder for the run's files; default ``runs/quickstart``.

    Returns:
        The run's folder.
    """
    train_digits(tasks, seed)
    return map_flow(study_config(tasks=tasks, seed=seed), out)
