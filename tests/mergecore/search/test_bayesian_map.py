"""Rounds of Bayesian MAP: budgets, pending points, seeds, bad options."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mergecore.acquisitions.front import FrontPoints
from mergecore.acquisitions.hypervolume import ExpectedHypervolume
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.search import SEARCHES
from mergecore.search.bayesian_map import BayesianMapOptions
from tests.mergecore.search.test_search import TWO, drive, make, measure

SMALL = {"acquisition": "hypervolume", "acquisition_options": {"draws": 16, "restarts": 1, "candidates": 16}}


def test_the_papers_experiment_is_six_and_threes() -> None:
    search = make("bayesian_map", samples=12)
    sizes = []
    while len(asked := search.ask()):
        sizes.append(len(asked))
        search.tell(asked, measure(asked))
    assert sizes == [6, 3, 3]
    assert [round_["known"] for round_ in search.rounds] == [6, 9]
    assert search.rounds[0]["surrogates"].keys() == {"a", "b"}
    json.dumps(search.rounds, allow_nan=False)


@pytest.mark.parametrize(("models", "initial", "samples"), [(2, 6, 18), (3, 8, 30), (8, 18, 150)])
def test_default_budgets(models: int, initial: int, samples: int) -> None:
    search = make("bayesian_map", models=models)
    assert len(search.ask()) == initial
    assert search.budget == samples


def test_a_small_budget_is_one_round() -> None:
    search = make("bayesian_map", samples=4)
    assert len(search.ask()) == 4
    assert drive(search).ask().shape == (0, 2)


def test_the_last_round_is_cut_to_the_budget() -> None:
    assert len(drive(make("bayesian_map", samples=10, batch=3)).coefficients_KN) == 10


@pytest.mark.parametrize("options", [{"acquisition": "angular_bins"}, SMALL], ids=["bins", "hypervolume"])
def test_pending_candidates_count_as_spent_and_are_not_asked_again(options: dict[str, Any]) -> None:
    search = make("bayesian_map", samples=11, batch=2, overlap=True, **options)
    first = search.ask()
    assert search.ask_ahead(np.zeros((1, 2))).shape == (0, 2)
    search.tell(first, measure(first))
    one = search.ask()
    two = search.ask_ahead(one)
    three = search.ask_ahead(np.concatenate([one, two]))
    assert [len(one), len(two), len(three)] == [2, 2, 1]
    everything = np.concatenate([first, one, two, three])
    apart = np.linalg.norm(everything[:, None] - everything, axis=2) + np.eye(len(everything))
    assert apart.min() > 1e-3


def test_hypervolume_rounds_repeat_and_continue_to_the_bit() -> None:
    def asked(search: Any) -> np.ndarray:
        return drive(search).coefficients_KN

    whole = asked(make("bayesian_map", samples=10, batch=2, **SMALL))
    assert np.array_equal(whole, asked(make("bayesian_map", samples=10, batch=2, **SMALL)))
    continued = make("bayesian_map", samples=10, batch=2, **SMALL)
    continued.tell(whole[:8], measure(whole[:8]))
    assert np.array_equal(asked(continued), whole)
    assert not np.array_equal(whole, asked(make("bayesian_map", samples=10, batch=2, seed=1, **SMALL)))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"acquisition_options": {"draws": 3}}, "search.acquisition_options need a search.acquisition"),
        ({"acquisition": "hypervolum"}, "unknown acquisition 'hypervolum'. Did you mean 'hypervolume'?"),
        (
            {"acquisition": "hypervolume", "acquisition_options": {"drawz": 1}},
            "The acquisition 'hypervolume': search.acquisition_options.drawz",
        ),
        ({"acquisition": "angular_bins", "acquisition_options": {"bins": 0}}, "search.acquisition_options.bins"),
        ({"batches": 1}, "Did you mean 'batch'?"),
    ],
)
def test_bad_options_are_one_sentence(search: dict[str, Any], message: str) -> None:
    study = {
        "base": "b",
        "models": [{"name": n, "source": n} for n in "ab"],
        "tasks": [{"name": "a"}],
        "search": {"method": "bayesian_map", **search},
    }
    with pytest.raises(InputError) as caught:
        parse_config(study)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("box", "models", "expected"),
    [
        ((0.0, 1.0), 4, (0.0, 1.0)),
        ((0.0, 1.0), 16, (0.0, 0.5)),
        ((-1.0, 1.0), 16, (-0.5, 0.5)),
        ((0.2, 1.0), 16, (0.2, 0.5)),
        ((0.8, 1.0), 16, (0.8, 1.0)),
        ((-1.0, -0.8), 16, (-1.0, -0.8)),
    ],
)
def test_first_samples_of_many_models_are_drawn_toward_the_base(
    box: tuple[float, float], models: int, expected: tuple[float, float]
) -> None:
    search = make("bayesian_map", models=models, box=box, sampler="sobol")
    np.testing.assert_allclose(search.first_box(), [expected] * models)  # type: ignore[attr-defined]
    first = search.ask()
    assert ((first >= expected[0]) & (first <= expected[1])).all()


def first_round(models: int, *, parts: bool = False, **options: Any) -> np.ndarray:
    cls = SEARCHES.get("bayesian_map")
    goals = replace(TWO, parts=parts)
    return cls(cls.Options(**options), models=models, objectives=goals).ask()


@pytest.mark.parametrize("models", [3, 4, 8])
def test_the_first_round_lies_around_base_and_models(models: int) -> None:
    first = first_round(models)
    assert len(first) == max(6, 2 * (models + 1))
    assert (first >= 0).all()
    assert (first <= 1).all()
    sums = np.sort(first.sum(axis=1))
    assert (sums >= 0.2).all()
    assert (sums <= 1.4).all()
    assert np.ptp(sums) > 0.7
    assert np.array_equal(first, first_round(models, box=(-0.5, 2.0)))  # the hull does not move with a wider box
    assert not np.array_equal(first, first_round(models, seed=1))


@pytest.mark.parametrize(
    ("models", "parts", "options"),
    [(3, True, {}), (3, False, {"box": (0.0, 0.8)}), (3, False, {"box": (0.1, 1.0)}), (2, False, {})],
)
def test_the_first_round_covers_the_box_where_the_hull_says_little(
    models: int, parts: bool, options: dict[str, Any]
) -> None:
    drawn = first_round(models, parts=parts, **options)
    assert np.array_equal(drawn, first_round(models, sampler="sobol", **options))


def test_the_acquisition_follows_from_the_number_of_objectives() -> None:
    options = BayesianMapOptions()
    assert isinstance(options.make_acquisition(4), ExpectedHypervolume)
    assert isinstance(options.make_acquisition(5), FrontPoints)
    assert isinstance(BayesianMapOptions(acquisition="hypervolume").make_acquisition(8), ExpectedHypervolume)


def wavy(c_KN: np.ndarray) -> np.ndarray:
    """`measure`, but no quadratic says anything of the second metric."""
    found = measure(c_KN)
    found[:, 1] = 1 + 0.5 * np.sin(25 * c_KN[:, 0]) * np.cos(25 * c_KN[:, 1])
    return found


@pytest.mark.parametrize("options", [{"acquisition": "front"}, SMALL], ids=["front", "hypervolume"])
def test_a_poor_task_has_every_other_round_for_itself(options: dict[str, Any]) -> None:
    search = make("bayesian_map", samples=30, initial=12, focus=0.8, **options)
    wanted = []
    while len(asked := search.ask()):
        mask = np.ones((len(asked), 2), dtype=bool) if search.wanted_KT is None else search.wanted_KT
        wanted.append(mask.all(axis=0).tolist())
        search.tell(asked, np.where(mask, wavy(asked), np.nan))
    assert wanted[0] == [True, True]
    assert wanted[1::2] == [[False, True]] * len(wanted[1::2])
    assert wanted[2::2] == [[True, True]] * len(wanted[2::2])
    assert [found["tasks"] for found in search.rounds[:2]] == [("b",), ("a", "b")]
    fits = search.fits()  # type: ignore[attr-defined]
    assert fits[0].used == 12 + 3 * len(wanted[2::2])
    assert fits[1].used == 30


def test_without_a_poor_task_or_with_only_poor_ones_all_are_measured() -> None:
    for focus in (-1e9, 1.0):
        search = make("bayesian_map", samples=12, focus=focus, acquisition="angular_bins")
        while len(asked := search.ask()):
            assert search.wanted_KT is None
            search.tell(asked, np.stack([wavy(asked)[:, 1]] * 2, axis=1))


def test_a_few_candidates_known_from_elsewhere_do_not_replace_the_first_round() -> None:
    plain = make("bayesian_map", samples=9).ask()
    search = make("bayesian_map", samples=9)
    warm = np.array([[0.5, 0.5], plain[0]])
    search.tell(warm, measure(warm))
    first = search.ask()
    assert np.array_equal(first, plain[1:5])
    assert not search.rounds
    search.tell(first, measure(first))
    assert search.ask().shape == (3, 2)
    assert len(search.rounds) == 1


@pytest.mark.parametrize(
    ("options", "workers", "told"),
    [
        ({}, 8, "keep 3 of this machine's 8 workers busy; 'search.batch: 8' keeps all."),
        ({}, 64, "keep 3 of this machine's 64 workers busy; 'search.batch: 12' keeps 12."),
        (
            {"overlap": True},
            8,
            "Two rounds at a time of 3 coefficient vectors keep 6 of this machine's 8 workers busy; "
            "'search.batch: 4' keeps all.",
        ),
        ({"overlap": True}, 6, ""),
        ({}, 3, ""),
        ({"batch": 8}, 8, ""),
        ({"samples": 6}, 8, ""),
        ({"samples": 8}, 8, ""),
    ],
)
def test_rounds_that_leave_workers_idle_are_told(options: dict[str, Any], workers: int, told: str) -> None:
    notes = [note for note in make("bayesian_map", **options).notes(workers=workers) if "workers busy" in note]
    assert bool(notes) is bool(told)
    assert all(told in note for note in notes)


def test_rounds_for_poor_tasks_alternate_where_they_overlap() -> None:
    search = make("bayesian_map", samples=18, batch=2, overlap=True, focus=1.0, acquisition="angular_bins")
    fits = search.fits  # type: ignore[attr-defined]

    def one_is_poor() -> Any:
        good, poor = fits()
        return replace(good, cross_validated_r2=1.0), replace(poor, cross_validated_r2=0.2)

    search.fits = one_is_poor  # type: ignore[attr-defined]
    wanted, asked = [], search.ask()
    while len(asked):
        mine = search.wanted_KT
        wanted.append(mine is None)
        ahead = search.ask_ahead(asked)
        metrics = measure(asked)
        search.tell(asked, metrics if mine is None else np.where(mine, metrics, np.nan))
        if not len(ahead):
            ahead = search.ask()
        asked = ahead
    assert wanted == [True, False, True, False, True, False, True]


def test_nothing_is_asked_ahead_of_a_first_round_that_is_partly_known() -> None:
    search = make("bayesian_map", samples=12, overlap=True, acquisition="angular_bins")
    first = search.ask()
    search.tell(first[:1], measure(first[:1]))
    rest = search.ask()
    assert len(rest) == 5
    assert search.ask_ahead(rest).shape == (0, 2)
    search.tell(rest, measure(rest))
    assert search.ask_ahead(search.ask()).shape == (3, 2)
