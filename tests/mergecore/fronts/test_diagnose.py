"""The trade-off detector: one case for every verdict, and nothing that depends on units or directions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mergecore.errors import InputError
from mergecore.fronts.diagnose import Diagnosis, diagnose, typical_noise
from mergecore.fronts.dominance import non_dominated

UP = [True, True]


def competing(count: int = 60, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Accuracies along a quarter circle and below it."""
    generator = np.random.default_rng(seed)
    angle, radius = generator.uniform(0, np.pi / 2, count), generator.uniform(0.7, 1, count) ** 0.25
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]) + noise * generator.normal(size=(count, 2))


def agreeing(count: int = 60, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).uniform(0, 1, count)
    return np.column_stack([x, 0.5 + x / 2])


def of(samples: np.ndarray, **options: object) -> Diagnosis:
    front = samples[non_dominated(samples, maximise=options.get("maximise", UP))]
    return diagnose(samples, front, **({"maximise": UP} | options))


def test_competing_tasks_are_a_trade_off() -> None:
    found = of(competing(), noise_T=[0.01, 0.01], names=["cars", "birds"])
    assert found.verdict == "trade-off"
    assert found.correlation[0][1] < -0.8
    assert found.served_by_one < 0.5
    assert min(found.spread) > 0.5
    np.testing.assert_allclose(found.spread_in_noise, np.array(found.spread) / 0.01)
    assert "compete" in found.sentence
    assert "cars and birds" in found.sentence


def test_noise_on_top_of_a_trade_off_does_not_hide_it() -> None:
    for seed in range(5):
        assert of(competing(noise=0.03, seed=seed), noise_T=[0.03, 0.03]).verdict == "trade-off"


def test_one_best_model_is_a_single_point() -> None:
    found = of(agreeing(), noise_T=[0.01, 0.01])
    assert found.verdict == "single point"
    assert found.served_by_one == 1
    assert found.spread == [0, 0]
    assert found.correlation[0][1] == pytest.approx(1)
    assert found.best_single == agreeing().max(axis=0).tolist()


@pytest.mark.parametrize("tasks", [2, 8])
@pytest.mark.parametrize("seed", range(5))
def test_pure_noise_is_called_noise(tasks: int, seed: int) -> None:
    """The front of 250 repeated evaluations of one model: it looks like a trade-off, and with 8 tasks a wide one."""
    samples = 0.8 + 0.02 * np.random.default_rng(seed).normal(size=(250, tasks))
    found = of(samples, maximise=[True] * tasks, noise_T=np.full(tasks, 0.02))
    assert found.verdict == "noise only"
    assert "more data" in found.sentence


def test_a_front_that_is_narrower_than_noise_is_called_noise() -> None:
    samples = np.concatenate([agreeing(), [[1.0, 1.01], [1.01, 1.0]]])
    assert of(samples, noise_T=[0.02, 0.02]).verdict == "noise only"
    assert of(samples, noise_T=[0.0005, 0.0005]).verdict == "trade-off"


def test_a_point_that_is_nearly_the_best_everywhere_is_no_trade_off() -> None:
    samples = np.array([[0.0, 0.0], [1.0, 0.2], [0.2, 1.0], [0.995, 0.995]])
    found = of(samples)
    assert found.verdict == "no trade-off"
    assert "as good as the best" in found.sentence
    assert found.best_single == [0.995, 0.995]


def test_what_counts_as_nearly_follows_the_noise() -> None:
    samples = np.array([[0.0, 0.0], [1.0, 0.2], [0.2, 1.0], [0.9, 0.9]])
    assert of(samples, noise_T=[0.01, 0.01]).verdict == "trade-off"
    assert of(samples, noise_T=[0.05, 0.05]).verdict == "no trade-off"


def test_one_point_that_serves_nearly_everyone_is_no_trade_off() -> None:
    samples = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.98, 0.98]])
    found = of(samples)
    assert found.verdict == "no trade-off"
    assert 0.95 <= found.served_by_one < 1
    assert "of all preferences" in found.sentence


def test_unknown_noise_of_one_task_makes_no_claim_of_noise() -> None:
    samples = 0.8 + 0.02 * np.random.default_rng(0).normal(size=(250, 3))
    up = [True] * 3
    assert of(samples, maximise=up, noise_T=[0.02, 0.02, 0.02]).verdict == "noise only"
    partly = of(samples, maximise=up, noise_T=[0.02, np.nan, 0.02])
    assert partly.verdict == "trade-off"
    assert np.isnan(partly.spread_in_noise).tolist() == [False, True, False]
    assert of(samples, maximise=up).verdict == "trade-off"


def test_directions_and_units_do_not_matter() -> None:
    samples = competing()
    plain = of(samples)
    turned = of(samples * [1, -100] + [0, 200], maximise=[True, False])
    assert turned.verdict == plain.verdict
    assert turned.served_by_one == plain.served_by_one
    np.testing.assert_allclose(turned.correlation, plain.correlation, atol=1e-12)
    np.testing.assert_allclose(turned.spread, np.array(plain.spread) * [1, 100])


def test_incomplete_and_dominated_rows_do_not_count() -> None:
    samples = competing()
    front = samples[non_dominated(samples, maximise=UP)]
    dirty = diagnose(
        np.concatenate([samples, [[np.nan, 5.0]]]),
        np.concatenate([front, [[9.0, np.nan], [0.0, 0.0]]]),
        maximise=UP,
        noise_T=[0.1, 0.1],
    )
    assert dirty == diagnose(samples, front, maximise=UP, noise_T=[0.1, 0.1])


def test_correlation_of_an_objective_that_does_not_vary_is_unknown() -> None:
    samples = np.column_stack([np.linspace(0, 1, 7), np.full(7, 0.1), np.linspace(1, 0, 7)])
    found = of(samples, maximise=[True] * 3)
    matrix = np.array(found.correlation)
    assert np.isnan(matrix).tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    assert np.diag(matrix).tolist() == [1, 1, 1]
    assert matrix[0, 2] == pytest.approx(-1)
    assert "task 1 and task 3" in found.sentence


def test_correlation_is_numpys() -> None:
    samples = np.random.default_rng(0).normal(size=(40, 4))
    found = of(samples, maximise=[True] * 4)
    np.testing.assert_allclose(found.correlation, np.corrcoef(samples, rowvar=False), atol=1e-12)


def test_works_without_samples_and_repeats_to_the_bit() -> None:
    front = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
    found = diagnose(np.empty((0, 2)), front, maximise=UP, seed=4)
    assert found.verdict == "trade-off"
    assert np.isnan(found.correlation[0][1])
    again = diagnose(np.empty((0, 2)), front, maximise=UP, seed=4)
    assert json.dumps(found.to_dict()) == json.dumps(again.to_dict())


@pytest.mark.parametrize(
    ("front", "options", "said"),
    [
        (np.empty((0, 2)), {}, "No point"),
        ([[np.nan, 1.0]], {}, "No point"),
        ([[1.0, 2.0]], {"noise_T": [0.1]}, "not one standard error"),
        ([[1.0, 2.0]], {"noise_T": [0.1, -0.1]}, "not one standard error"),
        ([[1.0, 2.0]], {"names": ["a"]}, "names"),
        ([[1.0, 2.0, 3.0]], {}, "do not go with"),
    ],
)
def test_mistakes_are_named(front: object, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        diagnose(competing(), front, **({"maximise": UP} | options))


def test_typical_noise_is_the_median_of_what_is_known() -> None:
    noise = np.array([[0.1, np.nan, np.nan], [0.3, 0.5, np.nan], [0.2, np.nan, np.nan]])
    np.testing.assert_array_equal(typical_noise(noise), [0.2, 0.5, np.nan])
