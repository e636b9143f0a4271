"""Which candidates are measured on all data, and what the part says of the others: against slow twins."""

from __future__ import annotations

import numpy as np
import pytest

from mergecore.fidelity import Correction, grown_count, nearest_front
from mergecore.fronts.config import FrontConfig
from mergecore.fronts.indicators import hypervolume
from mergecore.search import SEARCHES, Objectives


def goals(tasks: int, lower: float | None = None, upper: float | None = None) -> Objectives:
    return Objectives(tuple("abc"[:tasks]), (True,) * tasks, (lower,) * tasks, (upper,) * tasks)


def slow_nearest(metrics: np.ndarray, noise: np.ndarray, count: int, maximise: list[bool]) -> list[int]:
    """Peel front after front by comparing every two candidates; among equals the least beaten first."""
    sign = [1 if up else -1 for up in maximise]
    rows = [k for k in range(len(metrics)) if all(np.isfinite(metrics[k]))]
    T = range(len(maximise))
    gain = {k: [sign[t] * metrics[k, t] for t in T] for k in rows}
    hope = {k: [gain[k][t] + (0 if np.isnan(noise[k, t]) else noise[k, t]) for t in T] for k in rows}
    span = [max(gain[k][t] for k in rows) - min(gain[k][t] for k in rows) or 1.0 for t in T]

    def dominates(j: int, k: int) -> bool:
        return all(hope[j][t] >= hope[k][t] for t in T) and any(hope[j][t] > hope[k][t] for t in T)

    def behind(k: int) -> float:
        return max((min((gain[j][t] - hope[k][t]) / span[t] for t in T) for j in rows if j != k), default=0.0)

    chosen: list[int] = []
    left = list(rows)
    while left:
        front = [k for k in left if not any(dominates(j, k) for j in left)]
        chosen += sorted(front, key=behind)
        left = [k for k in left if k not in front]
    return sorted(chosen[:count])


@pytest.mark.parametrize("seed", range(20))
def test_nearest_to_the_front_as_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maximise = [bool(rng.integers(2)) for _ in range(1 + seed % 3)]
    metrics = rng.random((15, len(maximise)))
    noise = rng.random(metrics.shape) * 0.2
    metrics[rng.random(metrics.shape) < 0.05] = np.nan
    noise[rng.random(metrics.shape) < 0.2] = np.nan
    for count in (1, 4, 15):
        assert nearest_front(metrics, noise, count, maximise=maximise).tolist() == slow_nearest(
            metrics, noise, count, maximise
        )


def test_the_whole_front_comes_before_anything_else() -> None:
    x = np.linspace(0, 1, 9)
    front = np.column_stack([x, 1 - x])
    metrics = np.vstack([0.6 * front, front])
    none = np.full(metrics.shape, np.nan)
    assert nearest_front(metrics, none, 9, maximise=[True, True]).tolist() == list(range(9, 18))
    assert nearest_front(-metrics, none, 9, maximise=[False, False]).tolist() == list(range(9, 18))


def test_the_less_certain_of_two_equals_is_preferred() -> None:
    metrics = np.array([[1.0, 1.0], [0.5, 0.5], [0.5, 0.5001]])
    noise = np.array([[0.0, 0.0], [0.1, 0.1], [0.0, 0.0]])
    assert nearest_front(metrics, np.zeros((3, 2)), 2, maximise=[True, True]).tolist() == [0, 2]
    assert nearest_front(metrics, noise, 2, maximise=[True, True]).tolist() == [0, 1]


def test_failed_candidates_are_never_chosen() -> None:
    metrics = np.array([[np.nan, 1.0], [0.1, 0.1], [np.inf, 0.2]])
    assert nearest_front(metrics, np.zeros((3, 2)), 3, maximise=[True, True]).tolist() == [1]
    assert nearest_front(metrics[:1], np.zeros((1, 2)), 1, maximise=[True, True]).tolist() == []
    assert nearest_front(np.empty((0, 2)), np.empty((0, 2)), 1, maximise=[True, True]).tolist() == []


@pytest.mark.parametrize(
    ("candidates", "grow", "expected"), [(10, 0.4, 4), (3, 0.4, 1), (4, 0.4, 2), (1, 0.1, 1), (0, 0.5, 0), (5, 1.0, 5)]
)
def test_how_many_are_grown(candidates: int, grow: float, expected: int) -> None:
    assert grown_count(candidates, grow) == expected


def test_an_estimate_is_shifted_by_the_mean_difference_and_says_how_uncertain_it_is() -> None:
    rng = np.random.default_rng(0)
    part, whole = rng.random((6, 2)), rng.random((6, 2))
    whole[2, 0] = np.nan
    correction = Correction(np.array([0.25, 0.5]), goals(2))
    correction.learn(part[:4], whole[:4])
    correction.learn(part[4:], whole[4:])
    metrics, noise = correction.estimate(np.array([[0.4, 0.6]]), np.array([[0.1, np.nan]]))
    rest = [0, 1, 3, 4, 5]
    a, b = (whole - part)[rest, 0], (whole - part)[:, 1]
    assert metrics == pytest.approx(np.array([[0.4 + a.mean(), 0.6 + b.mean()]]))
    assert noise == pytest.approx(np.array([[np.hypot(0.1 * 0.5, a.std(ddof=1)), b.std(ddof=1)]]))


def test_before_enough_is_known_the_error_is_the_parts_own() -> None:
    correction = Correction(np.array([0.25]), goals(1))
    assert correction.estimate(np.array([[0.4]]), np.array([[0.1]])) == (0.4, 0.1)
    correction.learn(np.array([[0.5], [0.6]]), np.array([[0.6], [0.7]]))
    metrics, noise = correction.estimate(np.array([[0.4]]), np.array([[0.1]]))
    assert metrics[0, 0] == pytest.approx(0.5)
    assert noise == 0.1


def test_an_estimate_stays_in_the_metrics_range_and_a_failure_stays_one() -> None:
    correction = Correction(np.array([0.25]), goals(1, 0.0, 1.0))
    correction.learn(np.array([[0.5]]), np.array([[0.8]]))
    metrics, _ = correction.estimate(np.array([[0.9], [0.1], [np.nan]]), np.zeros((3, 1)))
    np.testing.assert_allclose(metrics, [[1.0], [0.4], [np.nan]])


def test_errors_are_as_large_as_said() -> None:
    """Accuracy on a quarter of 400 examples: estimates of the other three quarters miss by what their noise says."""
    rng = np.random.default_rng(1)
    hits = rng.random((300, 400)) < rng.random((300, 1))
    whole, part = hits.mean(axis=1, keepdims=True), hits[:, :100].mean(axis=1, keepdims=True)
    errors = np.sqrt(part * (1 - part) / 100)
    correction = Correction(np.array([0.25]), goals(1, 0.0, 1.0))
    correction.learn(part[:100], whole[:100])
    metrics, noise = correction.estimate(part[100:], errors[100:])
    deviation = np.sqrt(noise**2 - 0.25 * errors[100:] ** 2)
    assert (metrics - whole[100:]).std() == pytest.approx(deviation.mean(), rel=0.15)


@pytest.mark.parametrize("maximise", [True, False])
def test_the_front_of_a_trade_off_is_found_on_a_quarter_of_the_data(maximise: bool) -> None:
    """Two classifiers in conflict, 400 examples each: accuracy, or the error rate to be minimised."""
    rng = np.random.default_rng(0)
    difficulty_NT = rng.random((400, 2))
    objectives = Objectives(("a", "b"), (maximise,) * 2, (0.0,) * 2, (1.0,) * 2)

    def skill(c_KN: np.ndarray) -> np.ndarray:
        q = np.column_stack([2 * c_KN[:, 0] - 1.5 * c_KN[:, 1] ** 2, 2 * c_KN[:, 1] - 1.5 * c_KN[:, 0] ** 2])
        return 1 / (1 + np.exp(-q))

    def measure(c_KN: np.ndarray, examples: int) -> tuple[np.ndarray, np.ndarray]:
        right = (difficulty_NT[None, :examples] < skill(c_KN)[:, None]).mean(axis=1)
        return right if maximise else 1 - right, np.sqrt(right * (1 - right) / examples)

    volumes = []
    for share in (1.0, 0.25):
        cls = SEARCHES.get("map")
        search = cls(cls.Options(samples=30), models=2, objectives=objectives)
        asked_KN = search.ask()
        metrics, noise = measure(asked_KN, int(400 * share))
        if share < 1:
            near = nearest_front(metrics, noise, grown_count(30, 0.4), maximise=objectives.maximise)
            whole, whole_noise = measure(asked_KN[near], 400)
            correction = Correction(np.full(2, share), objectives)
            correction.learn(metrics[near], whole)
            metrics, noise = correction.estimate(metrics, noise)
            metrics[near], noise[near] = whole, whole_noise
        search.tell(asked_KN, metrics, noise)
        front_PN = search.front(FrontConfig(population=40, generations=60)).coefficients_PN
        volumes.append(hypervolume(skill(front_PN), reference_T=[0.5, 0.5], maximise=(True, True)))
    assert volumes[1] > 0.98 * volumes[0] > 0
