"""Nested MAP: exact counts, what is merged with what, flat coefficients, resuming in the middle of a level."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from mergecore.errors import InputError
from mergecore.fronts.config import FrontConfig
from mergecore.search import SEARCHES, Objectives
from mergecore.search.nested_map import NestedMapSearch

SMALL = FrontConfig(population=40, generations=30)


def goals(models: int, maximise: bool = True) -> Objectives:
    return Objectives(
        tuple(f"t{n}" for n in range(models)),
        (maximise,) * models,
        (0.0,) * models,
        (1.0 if maximise else None,) * models,
        tuple(range(models)),
        tuple("abcdefghi"[:models]),
    )


def pairs_of(search: NestedMapSearch) -> list[list[str]]:
    return [[side["name"] for side in found["sides"]] for found in search.rounds]


def flat_of(found: dict[str, Any]) -> np.ndarray:
    """Coefficients of the four models, [4]."""
    return np.array([found["flat"].get(name, 0.0) for name in "abcd"])


def make(models: int, objectives: Objectives | None = None, **options: Any) -> NestedMapSearch:
    cls = SEARCHES.get("nested_map")
    made: NestedMapSearch = cls(cls.Options(**options), models=models, objectives=objectives or goals(models))
    return made


def measure(c_KN: np.ndarray) -> np.ndarray:
    """Each task wants its own model at 0.7 and suffers from the others, the more the farther they are."""
    N = c_KN.shape[1]
    harm_NN = np.abs(np.subtract.outer(np.arange(N), np.arange(N))) / N
    return np.asarray(expit(2.5 - 4 * (c_KN - 0.7) ** 2 - (c_KN @ harm_NN) ** 2))


def drive(search: NestedMapSearch, steps: int | None = None) -> tuple[int, set[tuple[tuple[float, ...], int]]]:
    """Answer only what is wanted; how many pairs were wanted, and which different ones."""
    wanted, distinct = 0, set()
    for _ in itertools.count() if steps is None else range(steps):
        asked = search.ask()
        if not len(asked):
            break
        assert search.wanted_KT is not None
        wanted += int(search.wanted_KT.sum())
        distinct |= {
            (tuple(c), t) for c, w in zip(asked.tolist(), search.wanted_KT, strict=True) for t in np.flatnonzero(w)
        }
        search.tell(asked, np.where(search.wanted_KT, measure(asked), np.nan))
    return wanted, distinct


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poor fronts on the way, where it does not matter which points are chosen."""
    monkeypatch.setattr("mergecore.search.pairs.POPULATION", 8)
    monkeypatch.setattr("mergecore.search.pairs.GENERATIONS", 2)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("models", "times"), [(2, 2), (3, 5), (4, 8), (5, 12), (6, 16), (7, 20), (8, 24), (9, 29)])
def test_evaluations_are_exactly_those_of_the_formula(models: int, times: int) -> None:
    search = make(models, order="given")
    wanted, distinct = drive(search)
    assert wanted == len(distinct) == 20 * times
    if models in (2, 4, 8):
        assert wanted == 20 * models * np.log2(models)  # 480 for eight
    assert sum(found["evaluations"] for found in search.rounds) == wanted


def make_and_drive(models: int, **options: Any) -> NestedMapSearch:
    search = make(models, **{"order": "given", **options})
    drive(search)
    return search


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("models", [2, 4, 8])
def test_closeness_costs_nothing_beyond_the_samples(models: int) -> None:
    _, distinct = drive(make(models))
    assert len(distinct) == 20 * models * np.log2(models)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("models", [3, 5])
def test_an_odd_model_out_costs_one_evaluation_by_closeness(models: int) -> None:
    search = make(models)
    _, distinct = drive(search)
    assert len(distinct) == sum(round_["evaluations"] for round_ in search.rounds) + 1


def test_a_pair_is_measured_on_its_own_tasks() -> None:
    search = make(4, order="given", samples=6)
    asked = search.ask()
    assert asked.shape == (12, 4)
    assert search.wanted_KT is not None
    assert search.wanted_KT.tolist() == [[True, True, False, False]] * 6 + [[False, False, True, True]] * 6
    assert (asked[:6, 2:] == 0).all()
    assert (asked[6:, :2] == 0).all()


@pytest.mark.usefixtures("hasty")
def test_given_order_pairs_neighbours() -> None:
    assert pairs_of(make_and_drive(5)) == [["a", "b"], ["c", "d"], ["e", "(a+b)"], ["(c+d)", "(e+(a+b))"]]


@pytest.mark.usefixtures("hasty")
def test_closest_scores_are_paired() -> None:
    search = make(4)
    asked = search.ask()
    assert np.array_equal(asked, np.eye(4))
    assert search.wanted_KT is not None
    assert np.array_equal(search.wanted_KT, np.eye(4, dtype=bool))
    search.tell(asked, np.where(np.eye(4) > 0, np.diag([0.5, 0.9, 0.52, 0.8]), np.nan))
    drive(search)
    assert pairs_of(search)[:2] == [["a", "c"], ["b", "d"]]


@pytest.mark.usefixtures("hasty")
def test_clustering_pairs_models_that_measure_alike() -> None:
    search = make(4, order="clustering")
    asked = search.ask()
    assert search.wanted_KT is not None
    assert search.wanted_KT.all()
    alike = np.array([[0.9, 0.1, 0.1, 0.8], [0.1, 0.9, 0.8, 0.1], [0.1, 0.85, 0.8, 0.1], [0.9, 0.15, 0.1, 0.8]])
    search.tell(asked, alike)
    drive(search)
    assert sorted(map(sorted, pairs_of(search)[:2])) == [["a", "d"], ["b", "c"]]


def test_the_result_is_flat_and_its_front_is_predicted_well() -> None:
    search = make_and_drive(4)
    front = search.front(SMALL)
    np.testing.assert_allclose(front.predicted_PT, measure(front.coefficients_PN), atol=0.005)
    chosen = flat_of(search.rounds[-1])
    equal = measure(front.coefficients_PN).mean(axis=1)
    assert measure(chosen[None]).mean() >= equal.max() - 0.01
    # every point of the last front is a multiple of what its two sides chose
    sides = [flat_of(found) for found in search.rounds[:2]]
    _, residual, *_ = np.linalg.lstsq(np.stack(sides, axis=1), front.coefficients_PN.T, rcond=None)
    np.testing.assert_allclose(residual, 0, atol=1e-20)


def test_preferences_pull_the_result_to_their_task() -> None:
    def reached(**prefer: float) -> np.ndarray:
        return measure(flat_of(make_and_drive(4, prefer=prefer).rounds[-1])[None])[0]

    assert reached(t0=1.0)[0] > reached(t3=1.0)[0] + 0.02
    assert reached(t3=1.0)[3] > reached(t0=1.0)[3] + 0.02


def test_metrics_to_minimise() -> None:
    search = make(2, goals(2, maximise=False), order="given")
    asked = search.ask()
    search.tell(asked, 3 - 2 * measure(asked))
    assert not len(search.ask())
    best = np.array(search.rounds[-1]["coefficients"])
    assert search.rounds[-1]["unit"] == "loss"
    assert measure(best[None]).mean() > measure(asked).mean(axis=1).max() - 0.01


def test_the_polish_looks_around_the_result() -> None:
    plain = make_and_drive(4)
    search = make_and_drive(4, polish=30)
    assert len(search.coefficients_KN) == len(plain.coefficients_KN) + 30
    around = search.coefficients_KN[-30:] - flat_of(plain.rounds[-1])
    assert np.ptp(around, axis=0).max() <= 0.3
    front = search.front(SMALL)
    assert len(front.fits) == 4
    sums = [measure(found.front(SMALL).coefficients_PN).mean(axis=1).max() for found in (plain, search)]
    assert sums[1] >= sums[0] - 0.002


def test_a_polish_along_groups_stays_in_their_plane() -> None:
    plain, search = make_and_drive(4), make_and_drive(4, polish=12, polish_along="groups")
    sides_2N = np.stack([flat_of(found) for found in plain.rounds[:2]])
    front = search.front(SMALL)
    for points in (search.coefficients_KN[-12:], front.coefficients_PN):
        along, residual, *_ = np.linalg.lstsq(sides_2N.T, points.T, rcond=None)
        np.testing.assert_allclose(residual, 0, atol=1e-20)
        assert np.abs(along.T - plain.rounds[-1]["coefficients"]).max() <= 0.3
    # the last pair's samples count too, so that twelve more leave little error
    np.testing.assert_allclose(front.predicted_PT, measure(front.coefficients_PN), atol=0.002)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("along", ["models", "groups"])
def test_a_polish_is_the_same_after_a_kill(along: str) -> None:
    whole = make_and_drive(4, polish=15, polish_along=along)
    continued = make(4, order="given", polish=15, polish_along=along)
    continued.restore(json.loads(json.dumps(whole.state())))
    one, two = (search.front(SMALL) for search in (whole, continued))
    assert np.array_equal(one.coefficients_PN, two.coefficients_PN)
    assert np.array_equal(one.predicted_PT, two.predicted_PT)


@pytest.mark.usefixtures("hasty")
def test_a_polish_along_models_knows_what_was_told_before() -> None:
    search = make_and_drive(4, polish=15)
    fits = search.front(SMALL).fits
    # each task was measured in one pair of the first level, in the last pair, and in the polish
    assert [fit.used for fit in fits] == [20 + 20 + 15] * 4
    assert [fit.excluded for fit in fits] == [0] * 4


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"polish": 44}, True),
        ({"polish": 45}, False),
        ({"polish": 0}, False),
        ({"polish": 3, "polish_along": "groups"}, False),
    ],
)
def test_a_polish_needs_a_sample_a_parameter(options: dict[str, Any], warned: bool) -> None:
    assert bool(make(8, **options).notes()) is warned


@pytest.mark.usefixtures("hasty")
def test_a_level_is_on_record_as_soon_as_it_was_told() -> None:
    search = make(4, order="given", samples=6)
    asked = search.ask()
    assert search.label == "level 1"
    search.tell(asked, measure(asked))
    first, second = search.rounds
    assert [first["name"], second["name"]] == ["(a+b)", "(c+d)"]
    assert (first["level"], first["evaluations"]) == (1, 12)
    assert second["sides"][1] == {"name": "d", "models": ["d"], "tasks": ["t3"]}
    assert second["samples"]["coefficients"] == asked[6:, 2:].tolist()
    assert second["samples"]["metrics"] == measure(asked)[6:, 2:].tolist()
    json.dumps(search.rounds, allow_nan=False)
    search.ask()
    assert search.label == "level 2"


@pytest.mark.usefixtures("hasty")
def test_a_record_is_consistent() -> None:
    search = make_and_drive(4, prefer={"t0": 2.0, "t1": 1.0, "t2": 1.0})
    last = search.rounds[-1]
    groups, shares = np.array(last["front"]["groups"]), np.array([0.75, 0.25])
    assert (groups @ shares).argmax() == last["chosen"]
    assert last["coefficients"] == last["front"]["coefficients"][last["chosen"]]
    product = [
        x * c for x, side in zip(last["coefficients"], search.rounds[:2], strict=True) for c in side["coefficients"]
    ]
    np.testing.assert_allclose(flat_of(last), product)
    # the first side's metric: two of three parts of t0, one of t1
    metrics = np.array(last["samples"]["metrics"])
    np.testing.assert_allclose(np.array(last["samples"]["groups"])[:, 0], metrics[:, :2] @ [2 / 3, 1 / 3])


@pytest.mark.usefixtures("hasty")
def test_failed_samples_are_left_out() -> None:
    search = make(2, order="given")
    asked = search.ask()
    metrics = measure(asked)
    metrics[3] = np.nan
    search.tell(asked, metrics)
    assert search.rounds[0]["samples"]["groups"][3] == [None, None]
    assert search.rounds[0]["surrogates"]["t0"]["excluded"] == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_killed_search_goes_on_as_it_would_have(steps: int) -> None:
    whole, begun = make(5), make(5)
    drive(whole)
    drive(begun, steps)
    continued = make(5)
    continued.restore(json.loads(json.dumps(begun.state())))
    drive(continued)
    assert np.array_equal(continued.coefficients_KN, whole.coefficients_KN)
    assert continued.rounds == whole.rounds


def test_several_tasks_of_one_model_stay_together() -> None:
    objectives = Objectives(("a", "b", "c"), (True,) * 3, (0.0,) * 3, (1.0,) * 3, (0, 1, 0))
    search = make(2, objectives, order="given")
    search.ask()
    assert search.wanted_KT is not None
    assert search.wanted_KT.all()


@pytest.mark.parametrize(
    ("objectives", "options", "message"),
    [
        (Objectives(("a", "b"), (True,) * 2, (0.0,) * 2, (1.0,) * 2, (0, 0)), {}, "needs a task for each model"),
        (Objectives(("a", "b"), (True,) * 2, (0.0,) * 2, (1.0,) * 2, (0, None)), {}, "needs a task for each model"),
        (None, {"prefer": {"t": 1.0}}, "names no task 't'"),
        (None, {"prefer": {"t0": -1.0}}, "must be weights from 0"),
        (None, {"prefer": {"t0": 0.0}}, "must be weights from 0"),
    ],
)
def test_what_cannot_be_nested(objectives: Objectives | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(2, objectives, **options)


def test_the_front_needs_the_last_pair() -> None:
    search = make(4)
    drive(search, 1)
    with pytest.raises(InputError, match="has not reached its last pair"):
        search.front(SMALL)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("models", range(2, 10))
@pytest.mark.parametrize("order", ["given", "closeness", "clustering"])
def test_what_it_will_take_is_known_before(models: int, order: str) -> None:
    polish = 3 if models < 6 else 0
    search = make(models, order=order, samples=6, polish=polish)
    expected = search.pairs
    _, distinct = drive(search)
    if order == "given" or models in (2, 4, 8):
        assert len(distinct) == expected
    else:
        assert len(distinct) <= expected <= 6 * models * np.ceil(np.log2(models)) + (polish + models) * models


@pytest.mark.usefixtures("hasty")
def test_singles_outside_the_box_are_no_samples() -> None:
    search = make(4, samples=6, box=(0.1, 1.2))
    expected = search.pairs
    assert len(drive(search)[1]) == expected == 4 + 6 * 8
