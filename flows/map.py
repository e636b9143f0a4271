"""Plain MAP (MAP, Section 3, Algorithm 1)."""

from __future__ import annotations

from prefect import flow

from mergecore.config import StudyConfig
from mergecore.search import Search
from mergecore.study import new_search
from tasks.evaluation import Evaluations
from tasks.report import write_record
from tasks.run import Run, open_run
from tasks.search import choose_verified, evaluate_rounds, find_front
from tasks.verification import held_out_metrics, verify


@flow(name="map", flow_run_name="{config.name}", persist_result=False)
def map_flow(config: StudyConfig, out: str | None = None) -> str:
    """The Pareto front of a merge by quadratic surrogates of the metrics over the scaling coefficients.

    Args:
        config: the study.
        out: folder for the run's files; default ``runs/NAME``.

    Returns:
        The run's folder.
    """
    return amortised_front(config, out)


def amortised_front(config: StudyConfig, out: str | None) -> str:
    """The steps of every flow whose front is that of surrogates; how often a search asks is its own matter."""
    with open_run(config, out) as run:
        if run.unchanged:
            return run.unchanged
        search = new_search(run.study.config)
        rounds = evaluate_rounds(run, search)  # Omega: K coefficient vectors and their metrics
        return verified_front(run, search, rounds)


def verified_front(run: Run, search: Search, rounds: list[Evaluations]) -> str:
    """The front of a search that was told everything, on real merges, as a run's folder."""
    front = find_front(run, search)  # surrogates, then NSGA-III on them
    chosen = choose_verified(run, front)
    front, verification = verify(run, front, chosen)  # "MAP, real"
    test_PT, held_out = held_out_metrics(run, front, chosen)
    write_record(run, search, front, [*rounds, *verification], held_out, test_PT)
    return str(run.folder)
