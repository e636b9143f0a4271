"""Nested-merging MAP (MAP, Appendix E.2, Algorithm 2)."""

from __future__ import annotations

from prefect import flow

from flows.map import verified_front
from mergecore.config import StudyConfig
from mergecore.study import new_search
from tasks.pairs import merge_pair
from tasks.run import open_run
from tasks.search import each_round


@flow(name="nested_map", flow_run_name="{config.name}", persist_result=False)
def nested_map_flow(config: StudyConfig, out: str | None = None) -> str:
    """Models merged two by two by MAPs of two coefficients, level by level; the front is that of the last pair.

    Args:
        config: the study.
        out: folder for the run's files; default ``runs/NAME``.

    Returns:
        The run's folder.
    """
    with open_run(config, out) as run:
        if run.unchanged:
            return run.unchanged
        search = new_search(run.study.config)
        levels, merged = [], 0
        for level in each_round(run, search):  # all pairs of a level together, so that no worker waits for another pair
            levels.append(level)
            for merge in search.rounds[merged:]:  # each pair's surrogates, its front in two coefficients, its choice
                merge_pair(run, merge)
            merged = len(search.rounds)
        return verified_front(run, search, levels)
