"""A run that measures most candidates on a part of the data."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import FLOWS
from mergecore.config_file import parse_config
from mergecore.run_folder import read_run
from mergecore.run_record import RunRecord

pytestmark = [pytest.mark.usefixtures("prefect_api", "ray_cluster"), pytest.mark.timeout(300)]


def run(config: dict[str, Any], out: Path, **changes: Any) -> RunRecord:
    study = parse_config({**config, **changes})
    return read_run(FLOWS.get(study.search.method)(study, str(out)))


def evaluated(home: Path) -> dict[int, int]:
    """Number of examples to number of evaluations with so many."""
    with sqlite3.connect(home / "ledger.sqlite") as ledger:
        rows = ledger.execute("SELECT examples, COUNT(DISTINCT key) FROM evaluations GROUP BY examples")
        return dict(rows.fetchall())


@pytest.mark.slow
def test_counts_estimates_and_what_later_runs_share(pico_config: dict[str, Any], home: Path, tmp_path: Path) -> None:
    pico_config["tasks"] = [
        {**task, "dataset": {k: v for k, v in task["dataset"].items() if k != "test_split"} | {"seed": t}}
        for t, task in enumerate(pico_config["tasks"])
    ]
    budget = {"share": 0.25, "grow": 0.5}
    record = run(pico_config, tmp_path / "part", budget=budget)
    # twelve samples on a quarter of two tasks; six of them and three verified points on all data, which is the same for
    # both, so that one pass measures it
    verified = np.isfinite(record.front_metrics("real")).all(axis=1)
    assert verified.sum() == 3
    assert evaluated(home) == {10: 24, 40: 6 + 3}
    counts, spent = record.summary["evaluations"], record.summary["spent"]
    assert (counts["pairs"], counts["full_pairs"], counts["new_pairs"], counts["known_pairs"]) == (30, 24.0, 42, 0)
    assert counts["share_of_data"] == 24 / 30
    assert (spent["pairs"], spent["full_pairs"], spent["verification_pairs"]) == (24, 18.0, 6)
    status = record.evaluations["status"].tolist()
    assert (status[:12].count("estimated from a part of the data"), status.count("ok")) == (6, 9)
    assert record.evaluations["fingerprint"].nunique() == 15
    front = (tmp_path / "part" / "front.csv").read_bytes()

    run(pico_config, tmp_path / "again", budget=budget)
    assert (tmp_path / "again" / "front.csv").read_bytes() == front
    assert evaluated(home) == {10: 24, 40: 9}
    whole = run(pico_config, tmp_path / "whole", front={**pico_config["front"], "verify": 0})
    assert whole.summary["evaluations"]["new_pairs"] == 12  # six were known
    grown = np.array(status[:12]) == "ok"
    assert np.array_equal(record.evaluated_metrics()[:12][grown], whole.evaluated_metrics()[grown])
