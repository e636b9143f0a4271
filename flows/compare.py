"""Compare merge methods as the papers do (MAP, Section 4.3 and Table 4; PWE-MoE, Tables 2 to 4)."""

from __future__ import annotations

from prefect import flow

from mergecore.comparison.folder import FILES
from mergecore.comparison.methods import counts_of
from mergecore.config import StudyConfig
from tasks.comparison import compete, enter_heat, new_comparison, save_comparison
from tasks.run import open_run


@flow(name="compare", flow_run_name="{config.name}", persist_result=False)
def compare_flow(config: StudyConfig, out: str | None = None) -> str:
    """Every method of ``config.comparison`` on the first 2, 3, … models, through one ledger.

    Coefficients are chosen on the data of the search; the tables are of held-out data where there is any.

    Args:
        config: the study; its ``merge.transform`` is that of no method.
        out: folder for the comparison's files; default ``runs/<name>-compare``.

    Returns:
        The comparison's folder.
    """
    with open_run(config.untransformed(), out or f"runs/{config.name}-compare", files=FILES) as run:
        if run.unchanged:
            return run.unchanged
        comparison = new_comparison(run)
        config = run.study.config
        for count in counts_of(config):
            heat = enter_heat(run, comparison, count)
            for method in config.comparison.entrants(count):
                compete(heat, comparison, method)
        save_comparison(run, comparison)
        return str(run.folder)
