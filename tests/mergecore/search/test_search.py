"""Every search method keeps the contract of ask and tell; the front of each is checked on a known problem."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mergecore.errors import InputError, NumericalError
from mergecore.fronts.config import FrontConfig
from mergecore.fronts.dominance import non_dominated
from mergecore.search import SEARCHES, Objectives, Search

TWO = Objectives(("a", "b"), (True, False), (0.0, 0.0), (1.0, None), (0, 1))
QUICK = FrontConfig(population=40, generations=40)


def measure(c_KN: np.ndarray) -> np.ndarray:
    """One metric to maximise in (0, 1) and one to minimise from 0, in conflict along c_0."""
    a = 1 / (1 + np.exp(-(2 * c_KN[:, 0] - c_KN[:, 1] ** 2)))
    b = np.log1p(np.exp(c_KN[:, 0] + (c_KN[:, 1] - 0.5) ** 2 - 1))
    return np.column_stack([a, b])


QUICK_OPTIONS: dict[str, dict[str, Any]] = {
    "bayesian_map": {"acquisition": "angular_bins"},
    "nested_map": {"order": "given"},
}
"""Options that keep the contract's tests short."""


def make(name: str, models: int = 2, **options: Any) -> Search:
    cls = SEARCHES.get(name)
    options = QUICK_OPTIONS.get(name, {}) | options
    return cls(cls.Options(method=name, **options), models=models, objectives=TWO)


def drive(search: Search) -> Search:
    while len(asked := search.ask()):
        search.tell(asked, measure(asked))
    return search


@pytest.mark.parametrize("name", ["map", "direct"])
def test_one_sample_starts_with_base_and_single_models(name: str) -> None:
    asked = make(name, models=3, samples=20).ask()
    assert {(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)} <= {tuple(row) for row in asked.tolist()}


@pytest.mark.parametrize("name", list(SEARCHES))
class TestContract:
    def test_asks_exactly_its_budget_inside_the_box_and_stops(self, name: str) -> None:
        search = drive(make(name, samples=25, box=[(-0.5, 1.0), (0.0, 2.0)]))
        assert search.coefficients_KN.shape == (25, 2) == (search.budget, 2)
        assert (search.coefficients_KN >= search.box_N2[:, 0]).all()
        assert (search.coefficients_KN <= search.box_N2[:, 1]).all()
        assert search.ask().shape == (0, 2)
        assert len(np.unique(search.coefficients_KN, axis=0)) == 25

    def test_the_front_is_non_dominated_and_repeats_to_the_bit(self, name: str) -> None:
        one, two = (drive(make(name, samples=25, seed=3)).front(QUICK) for _ in range(2))
        assert np.array_equal(one.coefficients_PN, two.coefficients_PN)
        metrics = one.real_PT if np.isnan(one.predicted_PT).all() else one.predicted_PT
        assert np.isfinite(metrics).all()
        assert non_dominated(metrics, maximise=TWO.maximise).all()
        assert len(metrics) > 1

    def test_state_is_json_and_restores(self, name: str) -> None:
        search = make(name, samples=25)
        asked = search.ask()
        metrics = measure(asked)
        metrics[4] = np.nan
        search.tell(asked, metrics)
        other = make(name, samples=25)
        other.restore(json.loads(json.dumps(search.state())))
        assert np.array_equal(other.ask(), search.ask())
        assert np.array_equal(other.front(QUICK).coefficients_PN, search.front(QUICK).coefficients_PN)
        with pytest.raises(InputError):
            other.restore(search.state())

    def test_failed_evaluations_do_not_end_it(self, name: str) -> None:
        search = make(name, samples=40)
        asked = search.ask()
        metrics = measure(asked)
        metrics[::7, 0] = np.nan
        metrics[3::7, 1] = np.nan
        search.tell(asked, metrics)
        front = search.front(QUICK)
        assert len(front.coefficients_PN)

    def test_nothing_usable_is_said(self, name: str) -> None:
        search = make(name, samples=12)
        asked = search.ask()

        def told_and_asked() -> None:  # a method that merges on what it is told says it at once
            search.tell(asked, np.full((len(asked), 2), np.nan))
            search.front(QUICK)

        with pytest.raises(NumericalError):
            told_and_asked()

    def test_wrong_shapes_are_refused(self, name: str) -> None:
        search = make(name, samples=12)
        for c, m in (((3, 3), (3, 2)), ((3, 2), (2, 2)), ((3, 2), (3, 1))):
            with pytest.raises(InputError):
                search.tell(np.zeros(c), np.zeros(m))
        with pytest.raises(InputError):
            search.tell(np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 1)))

    def test_another_process_asks_the_same(self, name: str) -> None:
        script = (
            "from mergecore.search import SEARCHES, Objectives\n"
            f"cls = SEARCHES.get({name!r})\n"
            f"o = Objectives(('a', 'b'), (True, False), (0.0, 0.0), (1.0, None), (0, 1))\n"
            f"options = cls.Options(method={name!r}, samples=15, seed=9, **{QUICK_OPTIONS.get(name, {})})\n"
            "s = cls(options, models=2, objectives=o)\n"
            "print([[x.hex() for x in row] for row in s.ask().tolist()])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        here = make(name, samples=15, seed=9).ask()
        assert done.stdout.strip() == str([[x.hex() for x in row] for row in here.tolist()])


@pytest.mark.parametrize(("models", "samples"), [(2, 30), (3, 50), (4, 60), (5, 85), (6, 100), (7, 140), (8, 250)])
def test_map_asks_the_papers_budget_by_default(models: int, samples: int) -> None:
    assert make("map", models=models).budget == samples


@pytest.mark.parametrize(
    ("models", "samples"), [(2, 200), (3, 300), (4, 300), (5, 500), (6, 500), (7, 1000), (8, 1000)]
)
def test_direct_asks_the_papers_budget_by_default(models: int, samples: int) -> None:
    assert make("direct", models=models).budget == samples


def test_map_warns_when_under_determined() -> None:
    assert "5 samples for a quadratic with 6 parameters" in make("map", samples=5).notes()[0]
    assert make("map", samples=6).notes() == []


def test_map_front_comes_close_to_the_real_one() -> None:
    """The metrics are links of quadratics, so the surrogates are exact and so is the front."""
    front = drive(make("map", samples=30)).front(FrontConfig(population=60, generations=100))
    np.testing.assert_allclose(measure(front.coefficients_PN), front.predicted_PT, atol=2e-4)
    dense = np.stack(np.meshgrid(*[np.linspace(0, 1, 201)] * 2), -1).reshape(-1, 2)
    better = measure(dense)
    for row in front.predicted_PT:
        assert not ((better[:, 0] > row[0] + 5e-3) & (better[:, 1] < row[1] - 5e-3)).any()


@pytest.mark.parametrize("method", ["map", "direct"])
def test_what_others_found_takes_the_place_of_own_samples(method: str) -> None:
    own = make(method, samples=20).ask()
    search = make(method, samples=20)
    known = np.vstack([own[7], [[0.123, 0.456]], own[2]])
    search.tell(known, measure(known))
    rest = [row for k, row in enumerate(own.tolist()) if k not in (2, 7)]
    assert search.ask().tolist() == rest[:17]
    search.tell(search.ask(), measure(search.ask()))
    assert search.ask().shape == (0, 2)
