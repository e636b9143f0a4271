"""Every rule of a comparison: the contract, golden values, and the search behind a front."""

from __future__ import annotations

import numpy as np
import pytest

from mergecore.contenders import CONTENDERS
from mergecore.contenders.base import Contender, Field
from mergecore.contenders.searched import Searched
from mergecore.contenders.unloaded import Unloaded
from mergecore.errors import InputError, NumericalError
from mergecore.fronts.config import FrontConfig
from mergecore.search import SEARCHES, Objectives

GOALS = Objectives(("x", "y"), (True, True), (None, None), (None, None), (0, 1))
PREFERENCES = np.array([[0.5, 0.5], [0.9, 0.1], [0.0, 1.0]])
SMALL = FrontConfig(population=24, generations=20)


def field(**changes: object) -> Field:
    given = {"columns": 2, "objectives": GOALS, "owners": (0, 1), "scales": (0.2, 0.4, 0.6, 0.8, 1.0)}
    return Field(**{**given, **changes})  # type: ignore[arg-type]


def metrics(c_KN: np.ndarray) -> np.ndarray:
    """A concave trade-off: each task wants its own model and suffers from the other."""
    return np.stack([0.9 - (c_KN[:, n] - 0.7) ** 2 - 0.3 * c_KN[:, 1 - n] ** 2 for n in (0, 1)], axis=1)


def answered(contender: Contender) -> Contender:
    while len(asked_KN := contender.ask()):
        contender.tell(asked_KN, metrics(asked_KN))
    return contender


def contender(name: str, found: Field) -> Contender:
    if name in SEARCHES:
        cls = SEARCHES.get(name)
        rule = Unloaded if cls.learns else Searched
        return rule(found, cls(cls.Options(), models=found.columns, objectives=found.objectives), SMALL)
    made: Contender = CONTENDERS.get(name)(found)
    return made


@pytest.mark.parametrize("name", [*CONTENDERS, *SEARCHES])
class TestContract:
    def test_one_finite_choice_a_preference(self, name: str) -> None:
        chosen, predicted_RT = answered(contender(name, field())).choose(PREFERENCES, scale="none")
        assert chosen.shape in ((3, 2), (3, 2, 2))
        assert np.isfinite(chosen).all()
        assert predicted_RT.shape == PREFERENCES.shape

    def test_it_repeats_and_asks_no_more(self, name: str) -> None:
        one, two = (answered(contender(name, field())) for _ in range(2))
        assert one.ask().shape == (0, 2)
        assert np.array_equal(one.choose(PREFERENCES, scale="none")[0], two.choose(PREFERENCES, scale="none")[0])

    def test_golden_value(self, name: str) -> None:
        chosen, _ = answered(contender(name, field())).choose(PREFERENCES, scale="none")
        np.testing.assert_allclose(chosen[1], GOLDEN[name], atol=0.05)


GOLDEN = {
    "base": [0.0, 0.0],
    "soup": [0.5, 0.5],
    "task_arithmetic": [0.6, 0.6],
    "preference_weights": [0.9, 0.1],
    "single": [[1.0, 0.0], [0.0, 1.0]],
    # the maximum of 0.9 x + 0.1 y: c_0 = 0.63 / 0.93, c_1 = 0.07 / 0.37
    "map": [0.6774, 0.1892],
    "nested_map": [0.6774, 0.1892],
    "bayesian_map": [0.6774, 0.1892],
    "direct": [0.6774, 0.1892],
    "pwe_moe": [0.9, 0.1],  # the preference, of which routers make coefficients
}
"""Coefficients for the preference (0.9, 0.1)."""


def test_task_arithmetic_takes_the_scale_that_is_best_on_average() -> None:
    rule = contender("task_arithmetic", field())
    asked_KN = rule.ask()
    assert asked_KN.tolist() == [[s, s] for s in (0.2, 0.4, 0.6, 0.8, 1.0)]
    rule.tell(asked_KN, np.array([[0.9, 0.1], [0.5, 0.4], [np.nan, 0.9], [0.6, 0.5], [0.1, 0.9]]))
    chosen, predicted = rule.choose(PREFERENCES, scale="none")
    assert chosen.tolist() == [[0.8, 0.8]] * 3
    assert np.isnan(predicted).all()


def test_metrics_of_different_kinds_are_put_on_one_scale() -> None:
    goals = Objectives(("accuracy", "perplexity"), (True, False), (0.0, 1.0), (1.0, None))
    rule = contender("task_arithmetic", field(objectives=goals, scales=(0.2, 0.4, 0.6)))
    rule.tell(rule.ask(), np.array([[0.80, 40.0], [0.79, 20.0], [0.60, 19.0]]))
    assert rule.choose(PREFERENCES, scale="range")[0][0].tolist() == [0.4, 0.4]


def test_a_single_scale_costs_no_evaluation() -> None:
    rule = contender("task_arithmetic", field(scales=(1.0,)))
    assert rule.ask().shape == (0, 2)
    assert rule.choose(PREFERENCES, scale="none")[0].tolist() == [[1.0, 1.0]] * 3


def test_nothing_usable_was_told() -> None:
    rule = contender("task_arithmetic", field())
    with pytest.raises(NumericalError, match="told nothing"):
        rule.choose(PREFERENCES, scale="none")
    rule.tell(rule.ask(), np.full((5, 2), np.nan))
    with pytest.raises(NumericalError, match="No point of this front has all its metrics"):
        rule.choose(PREFERENCES, scale="none")


def test_several_tasks_of_one_model_add_their_preferences() -> None:
    rule = contender("preference_weights", field(owners=(1, 1)))
    assert rule.choose(PREFERENCES, scale="none")[0].tolist() == [[0.0, 1.0]] * 3


@pytest.mark.parametrize("name", ["preference_weights", "single"])
def test_a_task_of_no_model(name: str) -> None:
    with pytest.raises(InputError, match="No model was fine-tuned for the task 'y'"):
        contender(name, field(owners=(0, None))).choose(PREFERENCES, scale="none")


def test_the_front_is_found_once_and_predicts_its_choices() -> None:
    rule = answered(contender("map", field()))
    assert rule.front() is rule.front()
    chosen, predicted_RT = rule.choose(PREFERENCES, scale="none")
    np.testing.assert_allclose(predicted_RT, metrics(chosen), atol=0.02)
    front = rule.front()
    assert front is not None
    sums_PR = front.predicted_PT @ PREFERENCES.T
    np.testing.assert_allclose((predicted_RT * PREFERENCES).sum(axis=1), sums_PR.max(axis=0))
