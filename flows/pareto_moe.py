"""PWE-MoE: learn the whole Pareto set with routers (Tang et al. 2024, Section 4)."""

from __future__ import annotations

from prefect import flow

from mergecore.config import StudyConfig
from mergecore.study import new_search
from tasks.pareto_moe import findings, train
from tasks.report import write_record
from tasks.run import open_run
from tasks.search import choose_verified, evaluate_rounds, find_front
from tasks.verification import held_out_metrics


@flow(name="pareto_moe", flow_run_name="{config.name}", persist_result=False)
def pareto_moe_flow(config: StudyConfig, out: str | None = None) -> str:
    """Routers that make a merged network of any preference, trained once; the front is that of rays over the simplex.

    Args:
        config: the study.
        out: folder for the run's files; default ``runs/NAME``.

    Returns:
        The run's folder.
    """
    with open_run(config, out) as run:
        if run.unchanged:
            return run.unchanged
        run, trained = train(run)  # up-scaling, then Algorithm 1
        search = new_search(run.study.config)
        rounds = evaluate_rounds(run, search)  # each ray unloaded and measured
        front = find_front(run, search)
        test_PT, held_out = held_out_metrics(run, front, choose_verified(run, front))
        facts, figures = findings(run, trained)
        write_record(run, search, front, rounds, held_out, test_PT, findings=facts, figures=figures)
        return str(run.folder)
