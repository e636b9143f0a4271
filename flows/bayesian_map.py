"""Bayesian MAP (MAP, Appendix E.3, Algorithm 3)."""

from __future__ import annotations

from prefect import flow

from flows.map import amortised_front
from mergecore.config import StudyConfig


@flow(name="bayesian_map", flow_run_name="{config.name}", persist_result=False)
def bayesian_map_flow(config: StudyConfig, out: str | None = None) -> str:
    """Plain MAP with fewer evaluations: each round's samples are chosen by what the rounds before it told.

    Args:
        config: the study.
        out: folder for the run's files; default ``runs/NAME``.

    Returns:
        The run's folder.
    """
    return amortised_front(config, out)
