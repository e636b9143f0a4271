"""Records of runs: their columns' names, and metrics by task."""

from __future__ import annotations

import pytest

from mergecore.errors import InputError
from mergecore.run_record import TaskInfo, check_names
from tests.mergecore.records import HOSTILE_NAMES, make_record


@pytest.mark.parametrize(
    ("models", "tasks"), [(["m"], ["round"]), (["m"], ["c.m"]), (["m", "m"], ["A"]), (["m"], ["A", "A"])]
)
def test_names_that_share_a_column_are_refused(models: list[str], tasks: list[str]) -> None:
    with pytest.raises(InputError, match="would appear twice"):
        check_names(models, tasks)


def test_names_that_are_not_text_are_refused() -> None:
    with pytest.raises(InputError, match="UTF-8"):
        check_names(["m"], ["\ud800"])
    check_names(HOSTILE_NAMES, HOSTILE_NAMES)


def test_metrics_of_the_record_are_arrays_by_task() -> None:
    record = make_record(points=3, verified=1)
    assert record.front_coefficients().shape == (3, 2)
    assert record.front_metrics("predicted")[2, 1] == record.front["predicted.B"][2]
    assert record.evaluated_coefficients().tolist()[1] == [1.0, 0.0]
    assert record.evaluated_metrics()[4, 0] == record.evaluations["A"][4]
    assert TaskInfo(name="A", metric="loss", maximise=False).upper is None
