"""What a search may spend: pairs are counted once each, cuts are exact, impossible budgets are one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mergecore.budget import (
    ALL_SAMPLES,
    MINUTES,
    PAIRS,
    BudgetConfig,
    Spending,
    Tally,
    affordable,
    budget_notes,
    check_budget,
    ending,
    spent_sentence,
)
from mergecore.errors import InputError
from mergecore.search import SEARCHES, Objectives, Search

WHOLE = np.ones(2)


def make(method: str, models: int = 2, **options: Any) -> Search:
    cls = SEARCHES.get(method)
    names = tuple(f"t{n}" for n in range(models))
    alike = (True,) * models, (0.0,) * models, (1.0,) * models
    return cls(
        cls.Options(method=method, **options), models=models, objectives=Objectives(names, *alike, tuple(range(models)))
    )


def spending(now: list[float] | None = None, **budget: Any) -> Spending:
    now = now or [100.0]
    return Spending(BudgetConfig(**budget), share_T=np.ones(3), started=100.0, clock=lambda: now[0])


def test_a_pair_counts_once() -> None:
    c_KN = np.array([[0.0, 1.0], [0.5, 0.5], [0.0, 1.0]])
    wanted_KT = np.array([[True, False], [True, True], [True, True]])
    tally = Tally(np.ones(2))
    tally.add(c_KN, wanted_KT)
    tally.add(c_KN, wanted_KT)
    assert (tally.vectors, tally.pairs) == (2, 4)


@pytest.mark.parametrize("pairs", range(1, 16))
def test_a_round_is_cut_to_its_first_candidates(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    c_KN = rng.integers(0, 2, (12, 2)).astype(float)  # many repeat
    wanted_KT = rng.random((12, 3)) < 0.7
    budget = spending(pairs=pairs)
    budget.tally.add(np.array([[0.0, 0.0]]), np.array([[True, True, False]]))
    fitting = budget.fitting(c_KN, wanted_KT)
    counts = []
    for k in range(len(c_KN) + 1):
        seen = {(0.0, 0.0, 0), (0.0, 0.0, 1)} | {
            (*c, t) for c, w in zip(c_KN[:k], wanted_KT, strict=False) for t in np.flatnonzero(w)
        }
        counts.append(len(seen))
    allowed = [k for k, count in enumerate(counts) if count <= pairs]
    assert fitting == (max(allowed) if allowed else 0)
    assert budget.tally.pairs == 2  # looking costs nothing


def test_which_bound_is_reached() -> None:
    now = [100.0]
    budget = spending(now, pairs=5, minutes=2)
    budget.tally.add(np.zeros((1, 2)), np.array([[True, True, False]]))
    assert budget.over() == ""
    budget.tally.add(np.zeros((1, 2)), np.ones((1, 3), dtype=bool))
    assert budget.over() == PAIRS
    now[0] = 219.0
    assert budget.time_left()
    now[0] = 220.0
    assert not budget.time_left()
    assert budget.over() == MINUTES
    assert budget.minutes == 2


def test_without_bounds_everything_fits() -> None:
    budget = spending([1e12])
    assert budget.time_left()
    assert budget.over() == ""
    assert budget.fitting(np.zeros((7, 2)), np.ones((7, 2), dtype=bool)) == 7


def test_a_nested_search_is_not_cut_and_its_price_is_named() -> None:
    search = make("nested_map", models=8)
    check_budget(BudgetConfig(pairs=480), search, np.ones(8))
    with pytest.raises(InputError, match=r"nested_map takes up to 480 .* cannot be cut short, but budget.pairs is 479"):
        check_budget(BudgetConfig(pairs=479), search, np.ones(8))


@pytest.mark.parametrize(("method", "fewest"), [("map", 3), ("bayesian_map", 3), ("direct", 1)])
def test_too_little_for_a_front(method: str, fewest: int) -> None:
    search = make(method, samples=20)
    check_budget(BudgetConfig(pairs=2 * fewest), search, WHOLE)
    with pytest.raises(InputError, match=f"takes at least {2 * fewest} .coefficient vector, task. evaluations"):
        check_budget(BudgetConfig(pairs=2 * fewest - 1), search, WHOLE)
    check_budget(BudgetConfig(), search, WHOLE)


def test_few_samples_that_the_user_asked_for_are_no_fault_of_the_budget() -> None:
    check_budget(BudgetConfig(pairs=4), make("map", samples=2), WHOLE)


def test_a_warm_start_is_for_searches_that_take_any_samples() -> None:
    warm = BudgetConfig(warm_start=True)
    for method in ("map", "bayesian_map", "direct"):
        check_budget(warm, make(method), WHOLE)
    with pytest.raises(InputError, match="nested_map takes just its own samples"):
        check_budget(warm, make("nested_map"), WHOLE)


def test_what_a_cut_leaves_is_said_before() -> None:
    search = make("map", samples=20)
    assert affordable(BudgetConfig(pairs=17), search, WHOLE) == (8, 16)
    assert affordable(BudgetConfig(pairs=40), search, WHOLE) == affordable(BudgetConfig(), search, WHOLE) == (20, 40)
    assert "8 of the 20 coefficient vectors" in budget_notes(BudgetConfig(pairs=17), search, WHOLE)[0]
    assert budget_notes(BudgetConfig(pairs=40), search, WHOLE) == []


def test_one_sentence_says_what_was_spent() -> None:
    spent = {"pairs": 16, "full_pairs": 16, "minutes": 0.25, "ended": PAIRS, "warm_start": 0, "verification_pairs": 8}
    assert spent_sentence(spent) == (
        "The search took 16 (coefficient vector, task) evaluations and 0.2 minutes and ended by budget.pairs; "
        "verification took 8 more."
    )
    assert "16 (coefficient vector, task) evaluations, worth 9.5 on all data, and" in spent_sentence(
        {**spent, "full_pairs": 9.5}
    )
    assert "5 coefficient vectors came from the warm start" in spent_sentence({**spent, "warm_start": 5})
    assert ending({**spent, "ended": ALL_SAMPLES}) == "took all its samples"


@pytest.mark.parametrize("bad", [{"pairs": 0}, {"minutes": 0}, {"minutes": float("inf")}, {"hours": 1}])
def test_bounds_that_are_none(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        BudgetConfig(**bad)


def test_a_pair_on_the_part_counts_its_share() -> None:
    tally = Tally(np.array([0.25, 0.5]))
    c_KN, everything = np.array([[0.0, 1.0], [0.5, 0.5]]), np.ones((2, 2), dtype=bool)
    tally.add(c_KN, everything, part=True)
    assert (tally.pairs, tally.full_pairs, tally.measurements, tally.vectors) == (4, 1.5, 4, 2)
    tally.add(c_KN[:1], everything[:1])
    tally.add(c_KN[:1], everything[:1], part=True)
    assert (tally.pairs, tally.full_pairs, tally.measurements, tally.vectors) == (4, 3.5, 6, 2)


@pytest.mark.parametrize("pairs", range(2, 30, 3))
def test_a_round_on_a_part_of_the_data_is_cut_to_what_both_steps_cost(pairs: int) -> None:
    share_T = np.array([0.25, 0.3])
    options = BudgetConfig(pairs=pairs, share=0.25, grow=0.4)
    budget = Spending(options, share_T=share_T, started=0.0, clock=lambda: 0.0)
    c_KN = np.random.default_rng(0).random((20, 2))
    costs = [0.55 * k + 2 * (max(1, int(0.4 * k + 0.5)) if k else 0) for k in range(21)]
    assert budget.fitting(c_KN, np.ones((20, 2), dtype=bool)) == max(k for k in range(21) if costs[k] <= pairs)
    vectors, price = affordable(options, make("map", samples=20), share_T)
    assert costs[vectors] == pytest.approx(price)
    assert price <= pairs
    assert vectors == 20 or costs[vectors + 1] > pairs


def test_estimates_are_for_surrogates() -> None:
    part = BudgetConfig(share=0.5)
    for method in ("map", "bayesian_map"):
        check_budget(part, make(method), WHOLE)
    for method in ("direct", "nested_map"):
        with pytest.raises(InputError, match=f"{method} needs every metric on all data"):
            check_budget(part, make(method), WHOLE)


def test_rounds_that_overlap_and_a_part_of_the_data_exclude_each_other() -> None:
    search = make("bayesian_map", overlap=True)
    check_budget(BudgetConfig(), search, WHOLE)
    with pytest.raises(InputError, match=r"search\.overlap begins a round .* with budget\.share"):
        check_budget(BudgetConfig(share=0.5), search, WHOLE)


def test_what_is_pending_counts_as_spent() -> None:
    budget = spending(pairs=12)
    one, two = np.array([[0.1, 0.2]]), np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]])
    pending = one, np.ones((1, 3), dtype=bool)
    wanted_KT = np.ones((4, 3), dtype=bool)
    assert budget.fitting(two[1:], wanted_KT[1:], pending) == 3
    assert budget.fitting(np.vstack([two[1:], two[1:] / 2]), np.ones((6, 3), dtype=bool), pending) == 3
    assert not budget.over(pending)
    assert budget.over((two, wanted_KT)) == "budget.pairs"
    assert budget.tally.pairs == 0


def test_rounds_for_some_tasks_and_a_part_of_the_data_exclude_each_other() -> None:
    search = make("bayesian_map", focus=0.8)
    check_budget(BudgetConfig(), search, WHOLE)
    with pytest.raises(InputError, match=r"search\.focus measures some tasks alone, which budget\.share cannot do"):
        check_budget(BudgetConfig(share=0.5), search, WHOLE)
