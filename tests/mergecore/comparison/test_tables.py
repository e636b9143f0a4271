"""The tables of a comparison against sums and counts done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mergecore.comparison.methods import Comparison, MethodResult, Points
from mergecore.comparison.tables import (
    accuracy_table,
    kind_of_data,
    left_out,
    measures_table,
    points_of,
    points_table,
    preference_table,
    wide_preferences,
)
from mergecore.fronts.indicators import hypervolume
from mergecore.markdown import cell, table
from mergecore.run_record import TaskInfo

NAN = float("nan")
PREFERENCES = np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])


def points(test: list[list[float]], real: list[list[float]] | None = None, **changes: object) -> Points:
    test_RT = np.array(test)
    given = {
        "coefficients": np.full((len(test_RT), 2), 0.5),
        "predicted_RT": np.full_like(test_RT, NAN),
        "real_RT": np.full_like(test_RT, NAN) if real is None else np.array(real),
        "test_RT": test_RT,
    }
    return Points(**{**given, **changes})  # type: ignore[arg-type]


def result(method: str, chosen: Points | None, **changes: object) -> MethodResult:
    given = {"models": 2, "columns": ("a", "b"), "tasks": (0, 1), "evaluations": 6}
    return MethodResult(method=method, chosen=chosen, **{**given, **changes})  # type: ignore[arg-type]


def comparison(results: list[MethodResult], metric: str = "accuracy", maximise: bool = True) -> Comparison:
    return Comparison(
        name="c",
        models=["a", "b"],
        tasks=[TaskInfo(name=name, metric=metric, maximise=maximise) for name in ("x", "y")],
        preferences={2: PREFERENCES},
        worst={(2, "test"): np.array([0.1, 0.2]), (2, "real"): np.array([0.0, 0.0])},
        own={(2, "test"): np.array([0.8, 0.5]), (2, "real"): np.array([1.0, 1.0])},
        results=results,
    )


FRONT = points([[0.9, 0.3], [NAN, NAN], [0.5, 0.7]])
MAP = result("map", points([[0.6, 0.6], [0.9, 0.3], [0.5, 0.7]]), front=FRONT)
SOUP = result("soup", points([[0.5, 0.5]] * 3), evaluations=0)
SINGLE = result("single", points([[0.8, 0.5]] * 3, coefficients=np.ones((3, 2, 2))), bound=True)
SLERP = result("slerp", None, reason="SLERP merges two models.")


def test_weighted_sums_leave_the_equal_preference_out() -> None:
    found = preference_table(comparison([MAP, SOUP, SLERP])).set_index("method")
    assert found.loc["map", "2 mean"] == pytest.approx(np.mean([0.9, 0.25 * 0.5 + 0.75 * 0.7]))
    assert found.loc["map", "2 std"] == pytest.approx(np.std([0.9, 0.65]))
    assert found.loc["soup", "2 std"] == pytest.approx(0)
    assert np.isnan(found.loc["slerp", "2 mean"])
    assert wide_preferences(found.reset_index()).iloc[0].tolist() == ["map", "0.7750 ± 0.1250"]
    assert wide_preferences(found.reset_index()).iloc[2].tolist() == ["slerp", ""]


def test_where_less_is_better_shares_of_the_single_models_are_added() -> None:
    found = preference_table(comparison([SOUP], metric="perplexity", maximise=False))
    assert found["2 mean"][0] == pytest.approx(np.mean([0.8 / 0.5, 0.25 * 0.8 / 0.5 + 0.75]))


def test_per_task_metrics_at_equal_preference() -> None:
    found = accuracy_table(comparison([MAP, SINGLE, SLERP]), 2)
    assert found.to_dict("records") == [
        {"method": "map", "x": 0.6, "y": 0.6, "average": pytest.approx(0.6)},
        {"method": "single", "x": 0.8, "y": 0.5, "average": pytest.approx(0.65)},
    ]


def test_measures_are_those_of_all_points_against_all_methods() -> None:
    found = measures_table(comparison([MAP, SOUP, SINGLE, SLERP]), 2).set_index("method")
    assert list(found.index) == ["map", "soup"]
    assert found.loc["map", "points"] == 3
    own = np.array([[0.5, 0.7], [0.6, 0.6], [0.9, 0.3]])
    assert found.loc["map", "hypervolume"] == pytest.approx(
        hypervolume(own, reference_T=[0.1, 0.2], maximise=[True, True])
    )
    assert found.loc["map", "share"] == 1
    assert 0 < found.loc["soup", "share"] < 1
    assert found.loc["map", "GD"] == found.loc["map", "IGD"] == 0
    assert found.loc["soup", "GD"] == pytest.approx(np.hypot(0.1, 0.1))
    # by hand: 0.9 and 0.6 beat 0.5 on x, 0.7 and 0.6 beat it on y; the soup beats 0.3 on y alone
    assert found.loc["map", "win rate"] == pytest.approx(4 / 6, abs=0.05)
    assert found.loc["soup", "win rate over map"] == pytest.approx(1 / 6, abs=0.05)
    assert np.isnan(found.loc["map", "win rate over map"])
    assert found.loc["soup", "evaluations"] == 0


def test_a_method_that_failed_on_a_task_has_no_measures() -> None:
    failed = result("dare", points([[0.9, NAN]] * 3))
    found = measures_table(comparison([MAP, failed, SOUP]), 2)
    assert found["method"].tolist() == ["map", "soup"]
    assert np.isnan(preference_table(comparison([failed]))["2 mean"][0])


def test_tasks_called_like_columns_stay_apart() -> None:
    named = comparison([MAP])
    named.tasks = [TaskInfo(name=name, metric="accuracy", maximise=True) for name in ("average", "method")]
    assert list(accuracy_table(named, 2).columns) == ["method", "average (task)", "method (task)", "average"]


def test_only_bounds_leave_no_measures() -> None:
    assert measures_table(comparison([SINGLE]), 2).empty


def test_held_out_data_is_reported_only_where_all_have_it() -> None:
    assert kind_of_data(comparison([MAP, SLERP])) == "test"
    searched = result("soup", points([[NAN, NAN]] * 3, real=[[0.4, 0.4]] * 3))
    mixed = comparison([searched])
    assert kind_of_data(mixed) == "real"
    assert accuracy_table(mixed, 2)["average"][0] == pytest.approx(0.4)


def test_points_are_counted_once() -> None:
    assert points_of(SOUP, "test").tolist() == [[0.5, 0.5]]
    assert len(points_of(MAP, "test")) == 3


def test_every_point_with_its_use_and_coefficients() -> None:
    found = points_table(comparison([MAP, SINGLE, SLERP]))
    assert len(found) == 3 + 3 + 3
    assert found["use"].value_counts().to_dict() == {"preference": 6, "front": 3}
    assert found.loc[0, ["preference.x", "c.a", "test.y"]].tolist() == [0.5, 0.5, 0.6]
    assert found[found["method"] == "single"]["c.a"].isna().all()


def test_left_out_says_why() -> None:
    assert left_out(comparison([MAP, SLERP])).to_dict("records") == [
        {"method": "slerp", "models": 2, "reason": "SLERP merges two models."}
    ]


def test_cells_are_no_markup() -> None:
    assert cell("<b>|`x`\n y") == "&lt;b&gt;&#124;&#96;x&#96; y"
    assert table(["a", "b"], [(0.123456, NAN), (3, "z")]) == "| a | b |\n|---|---|\n| 0.1235 |  |\n| 3 | z |\n"
