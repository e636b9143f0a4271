"""Direct search, the baseline of MAP (Section 4.2): many evaluations, no surrogate."""

from __future__ import annotations

from prefect import flow

from mergecore.config import StudyConfig
from mergecore.study import new_search
from tasks.report import write_record
from tasks.run import open_run
from tasks.search import choose_verified, evaluate_rounds, find_front
from tasks.verification import held_out_metrics


@flow(name="direct", flow_run_name="{config.name}", persist_result=False)
def direct_flow(config: StudyConfig, out: str | None = None) -> str:
    """The non-dominated part of many evaluated coefficient vectors.

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
        rounds = evaluate_rounds(run, search)
        front = find_front(run, search)  # every point of it is real already
        test_PT, held_out = held_out_metrics(run, front, choose_verified(run, front))
        write_record(run, search, front, rounds, held_out, test_PT)
        return str(run.folder)
