"""Nested-merging MAP (MAP, Appendix E.2, Algorithm 2)."""

from __future__ import annotations

from prefect import flow

from flows.map import amortised_front
from mergecore.config import StudyConfig


@flow(name="nested_map", flow_run_name="{config.name}", persist_result=False)
def nested_map_flow(config: StudyConfig, out: str | None = None) -> str:
    """Models merged two by two by MAPs of two coefficients, level by level; the front is that of the last pair.

    Args:
        config: the study.
        out: folder for the run's files; default ``runs/<name>``.

    Returns:
        The run's folder.
    """
    return amortised_front(config, out)
