"""Runs that begin with what earlier ones know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import FLOWS
from mergecore.config_file import parse_config
from mergecore.run_folder import read_run
from mergecore.run_record import RunRecord
from tests.flows.conftest import CountedStudy

pytestmark = [pytest.mark.usefixtures("prefect_api", "ray_cluster"), pytest.mark.timeout(300)]


def run(config: dict[str, Any], out: Path, **changes: Any) -> RunRecord:
    front = {"population": 24, "generations": 20, "verify": 0}
    study = parse_config({**config, "front": front, "budget": {"warm_start": True}, **changes})
    return read_run(FLOWS.get(study.search.method)(study, str(out)))


def test_another_seed_method_or_part_of_the_tasks_costs_nothing(counted: CountedStudy, tmp_path) -> None:
    first = run(counted.config, tmp_path / "first")  # the ledger is empty
    assert first.summary["spent"]["warm_start"] == 0
    calls = counted.calls
    assert len(calls) == 40
    known_KN = np.unique(first.evaluated_coefficients(), axis=0)
    for number, changes in enumerate(
        [
            {"search": {"method": "map", "samples": 20, "seed": 5}},
            {"search": {"method": "direct", "samples": 20}},
            {"tasks": counted.config["tasks"][1:]},
        ]
    ):
        record = run(counted.config, tmp_path / str(number), **changes)
        assert counted.calls == calls
        assert record.summary["evaluations"]["new_pairs"] == 0
        assert record.summary["spent"]["warm_start"] == 20
        assert (record.evaluations["round"] == 0).all()
        assert np.array_equal(record.evaluated_coefficients(), known_KN)  # sorted


@pytest.mark.slow
def test_only_what_is_missing_is_taken(counted: CountedStudy, tmp_path) -> None:
    run(counted.config, tmp_path / "first", budget={"pairs": 12})
    search = {"method": "map", "samples": 10, "seed": 5, "box": [0.0, 0.99]}  # single models lie outside
    record = run(counted.config, tmp_path / "second", search=search)
    inside = record.summary["spent"]["warm_start"]
    assert 0 < inside < 6
    assert record.evaluations["round"].tolist() == [0] * inside + [1] * (10 - inside)
    assert len(counted.calls) == 12 + 2 * (10 - inside)
    assert (record.evaluated_coefficients() <= 0.99).all()
