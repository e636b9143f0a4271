"""When a search has enough: rounds that bring nothing, tasks that do not compete, noise, and what is not enough."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mergecore.fronts.config import FrontConfig
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.indicators import hypervolume
from mergecore.search import SEARCHES, Objectives, Search
from mergecore.search.convergence import NO_TRADE_OFF, NOTHING_MORE, Convergence, StopConfig
from tests.mergecore.search.test_search import TWO, make, measure

COARSE = FrontConfig(population=40, generations=30)
BINS: dict[str, Any] = {"acquisition": "angular_bins", "batch": 3}


def run(search: Search, metrics, stop: StopConfig | None = None, noise: float = np.nan) -> tuple[Convergence, str]:  # type: ignore[no-untyped-def]
    """Rounds until the search or its convergence says that it is over."""
    convergence, reason = Convergence(search, COARSE), ""
    while not reason and len(asked := search.ask()):
        found = metrics(asked)
        search.tell(asked, found, np.full_like(found, noise))
        convergence.observe()
        reason = convergence.enough(stop or StopConfig())
    return convergence, reason


def test_a_quadratic_trade_off_is_found_before_the_samples_are_spent() -> None:
    search = make("bayesian_map", samples=120, **BINS)
    convergence, reason = run(search, measure)
    assert reason.startswith(NOTHING_MORE)
    assert len(search.coefficients_KN) < 100
    assert convergence.rounds[-1].diagnosis.verdict == "trade-off"
    assert convergence.rounds[-1].gap < 0.01


def test_tasks_that_do_not_compete_end_early_and_say_so() -> None:
    goals = Objectives(("a", "b"), (True, True), (None, None), (None, None))
    cls = SEARCHES.get("bayesian_map")
    search = cls(cls.Options(samples=60, acquisition="front"), models=2, objectives=goals)

    def together(c_KN: np.ndarray) -> np.ndarray:
        return np.repeat(-((c_KN - 0.6) ** 2).sum(axis=1)[:, None], 2, axis=1)

    convergence, reason = run(search, together)
    assert reason.startswith(NO_TRADE_OFF)
    assert len(search.coefficients_KN) <= 21
    assert convergence.rounds[-1].diagnosis.verdict in ("single point", "no trade-off")


def test_nothing_is_enough_while_rounds_still_bring_something() -> None:
    search = make("bayesian_map", samples=15, **BINS)
    _, reason = run(search, measure, StopConfig(hypervolume=0.0, front=0.0, gap=0.0))
    assert reason == ""
    assert len(search.coefficients_KN) == 15


def test_the_first_rounds_are_never_enough() -> None:
    search = make("bayesian_map", samples=30, **BINS)
    generous = StopConfig(hypervolume=1.0, front=1.0, gap=1.0, rounds=3)
    convergence, reason = run(search, measure, generous)
    assert reason
    assert len(convergence.rounds) == 4  # the first has nothing before it to be compared with


def test_numbers_of_a_round_are_those_of_an_obvious_computation() -> None:
    search = make("bayesian_map", samples=12, **BINS)
    convergence = Convergence(search, COARSE)
    first = search.ask()
    search.tell(first, measure(first), np.full((6, 2), 0.01))
    one = convergence.observe()
    assert one is not None
    before = search.front(COARSE)
    second = search.ask()
    search.tell(second, measure(second), np.full((3, 2), 0.01))
    two = convergence.observe()
    assert two is not None
    told = search.metrics_KT
    span = np.ptp(told, axis=0)
    predicted = np.stack([fit.surrogate.predict(second) for fit in before.fits], axis=1)
    assert two.gap == pytest.approx(np.mean(np.abs(predicted - measure(second)) / span))
    assert two.noise == pytest.approx(np.mean(0.01 / span))
    worst = np.array([told[:, 0].min(), told[:, 1].max()])

    def volume(metrics: np.ndarray) -> float:
        best = metrics[non_dominated(metrics, maximise=TWO.maximise)]
        return hypervolume(best, reference_T=worst, maximise=TWO.maximise)

    assert two.hypervolume == pytest.approx(volume(told))
    assert two.improvement == pytest.approx(1 - volume(told[:6]) / volume(told))
    assert (one.known, two.known) == (6, 9)
    json.dumps([one.numbers(), two.numbers()], allow_nan=False)
    assert one.numbers()["gap"] is None


def test_noise_is_not_taken_for_a_gap() -> None:
    rng = np.random.default_rng(0)

    def noisy(c_KN: np.ndarray) -> np.ndarray:
        return measure(c_KN) + 0.05 * rng.standard_normal((len(c_KN), 2)) * [1, 1]

    strict = StopConfig(hypervolume=1.0, gap=0.0, front=1.0)
    _, blind = run(make("bayesian_map", samples=30, **BINS), noisy, strict)
    _, told = run(make("bayesian_map", samples=30, **BINS), noisy, strict, noise=0.2)
    assert blind == ""
    assert told


def test_direct_search_converges_by_its_real_front() -> None:
    search = make("direct", samples=20)
    asked = search.ask()
    convergence = Convergence(search, COARSE)
    for part in np.split(asked, 4):
        search.tell(part, measure(part))
        convergence.observe()
    assert all(np.isnan(found.gap) for found in convergence.rounds)
    assert all(found.movement >= 0 for found in convergence.rounds[1:])


def test_failed_evaluations_leave_a_round_without_a_front() -> None:
    search = make("bayesian_map", samples=12, **BINS)
    asked = search.ask()
    search.tell(asked, np.full((6, 2), np.nan))
    convergence = Convergence(search, COARSE)
    assert convergence.observe() is None
    assert convergence.enough(StopConfig(rounds=1)) == ""
