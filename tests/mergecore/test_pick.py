"""Picks of routers: the network at exactly a preference, or the best of what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.terminal import print_front, print_pick
from mergecore.errors import InputError
from mergecore.pick import NO_ROW, corner_table, pick_point
from mergecore.run_folder import read_run, write_run
from tests.mergecore.records import make_record, routed_record


def test_any_preference_is_unloaded_as_it_is() -> None:
    found = pick_point(routed_record(), prefer={"A": 1.4, "B": 0.6})
    assert (found.index, found.metrics, found.chosen_by) == (NO_ROW, {}, "preference")
    assert found.coefficients == pytest.approx({"A": 0.7, "B": 0.3})
    three = pick_point(routed_record("ABC"), prefer={"B": 3.0, "A": 1.0})
    assert three.coefficients == {"A": 0.25, "B": 0.75, "C": 0.0}


def test_a_ray_of_the_front_has_its_row_and_metrics() -> None:
    record = routed_record("ABC")
    for row, r_T in enumerate(record.front_coefficients()):
        found = pick_point(record, prefer=dict(zip("ABC", 10 * r_T, strict=True)))
        assert (found.index, found.metrics.keys()) == (row, {"real", "test"})
        assert list(found.coefficients.values()) == r_T.tolist()
        assert list(found.metrics["real"].values()) == record.front_metrics("real")[row].tolist()


def test_a_ray_that_is_not_on_the_front_has_what_the_search_measured() -> None:
    record = routed_record()
    r_T, metrics_T = record.evaluated_coefficients()[1], record.evaluated_metrics()[1]
    found = pick_point(record, prefer=dict(zip("AB", r_T, strict=True)))
    assert (found.index, found.metrics) == (NO_ROW, {"real": dict(zip("AB", metrics_T.tolist(), strict=True))})
    record.evaluations.loc[1, "B"] = np.nan
    assert pick_point(record, prefer=dict(zip("AB", r_T, strict=True))).metrics == {}


def test_other_ways_choose_among_the_measured_rays() -> None:
    record = routed_record()
    real_PT = record.front_metrics("real")
    verified = pick_point(record, prefer={"A": 0.9, "B": 0.1}, verified=True)
    assert verified.index == (real_PT @ [0.9, 0.1]).argmax()
    bounded = pick_point(record, at_least={"B": float(real_PT[2, 1])}, maximize="A")
    assert bounded.index == np.where(real_PT[:, 1] >= real_PT[2, 1], real_PT[:, 0], 0).argmax()
    assert verified.chosen_by == bounded.chosen_by == pick_point(record, at_knee=True).chosen_by == "real"


def test_bad_preferences_are_refused() -> None:
    for prefer, message in (({"C": 1.0}, "no task 'C'"), ({"A": -1.0}, "not a number from 0"), ({"A": 0.0}, "above 0")):
        with pytest.raises(InputError, match=message):
            pick_point(routed_record(), prefer=prefer)
    with pytest.raises(InputError, match="in one way"):
        pick_point(routed_record(), prefer={"A": 1.0}, at_knee=True)


def test_the_terminal_says_preference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, routed_record())
    record = read_run(tmp_path)
    print_pick(record, pick_point(record, prefer={"A": 0.7, "B": 0.3}))
    shown = capsys.readouterr().out
    assert "as preferred" in shown
    assert "0.700000" in shown
    assert "was not evaluated" in shown
    print_pick(record, pick_point(record, prefer={"A": 1.0}))
    shown += capsys.readouterr().out
    assert "point 0, as preferred" in " ".join(shown.split())
    record.summary["evaluations"] = {"coefficient_vectors": 7, "known_pairs": 0, "failed": 0}
    spent = {"pairs": 14, "full_pairs": 14, "minutes": 0.1, "warm_start": 0, "verification_pairs": 0, "ended": None}
    record.summary["spent"] = spent
    print_front(record)
    shown += capsys.readouterr().out
    assert "r.A" in shown
    assert "7 preferences evaluated" in shown
    assert "preference" in shown
    assert "c.A" not in shown
    assert "oefficient" not in shown


def test_runs_without_routers_say_coefficient(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record()
    print_pick(record, pick_point(record, prefer={"A": 1.0}))
    assert "scaling coefficient" in capsys.readouterr().out


def test_corners_are_the_same_rows_for_every_front() -> None:
    record = make_record(points=30, verified=5)
    table = corner_table(record)
    assert list(table.columns) == ["preference", "metrics", "A", "B", "c.m", "c.n"]
    assert list(table["preference"]) == ["all tasks alike", "only A", "only B"]
    best = pick_point(record, prefer={"B": 1.0})
    known = best.metrics.get("real", best.metrics["predicted"])
    assert table.loc[2, ["A", "B"]].to_dict() == known
    assert table.loc[2, "metrics"] == f"A {known['A']:.4f}, B {known['B']:.4f}"
    assert table.loc[2, ["c.m", "c.n"]].to_list() == list(best.coefficients.values())
    record.front = record.front.iloc[:0]
    assert corner_table(record).empty
