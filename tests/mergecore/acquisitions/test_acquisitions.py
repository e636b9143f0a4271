"""Every acquisition: the contract; the paper's bins against slow twins."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore.acquisitions import ACQUISITIONS
from mergecore.acquisitions.angular_bins import (
    QUARTER,
    AngularBins,
    AngularBinsOptions,
    angles,
    cells,
    direction,
    softmax,
)
from mergecore.acquisitions.base import Acquisition, Known
from mergecore.fronts.dominance import non_dominated
from mergecore.sampling import sample
from mergecore.search import Objectives
from mergecore.surrogates import fit_quadratic

QUICK = {
    "angular_bins": {},
    "front": {"population": 40, "generations": 20},
    "hypervolume": {"draws": 16, "restarts": 1, "candidates": 16},
}


def wavy(c_KN: np.ndarray) -> np.ndarray:
    """Two conflicting metrics that are no quadratics."""
    bump = 0.1 * np.sin(6 * c_KN.sum(axis=1))
    return np.stack([0.9 - (c_KN[:, 0] - 0.8) ** 2 + bump, 2 + (c_KN[:, 1] - 0.9) ** 2 + c_KN[:, 0] + bump], axis=1)


def known(count: int = 12, models: int = 2, pending: int = 0, box: tuple[float, float] = (0.0, 1.0)) -> Known:
    box_N2 = np.array([box] * models)
    c_KN = sample("sobol", count, box=box_N2, seed=1)
    metrics_KT = wavy(c_KN)
    goals = Objectives(("a", "b"), (True, False), (None, 0.0), (None, None))
    fits = tuple(fit_quadratic(c_KN, metrics_KT[:, t], lower=goals.lower[t], upper=goals.upper[t]) for t in range(2))
    pending_QN = sample("uniform", pending, box=box_N2, seed=2, anchors=False) if pending else np.empty((0, models))
    return Known(c_KN, metrics_KT, np.full_like(metrics_KT, 0.01), fits, box_N2, goals, pending_QN)


def acquisition(name: str) -> Acquisition:
    cls = ACQUISITIONS.get(name)
    made: Acquisition = cls(cls.Options(**QUICK[name]))
    return made


@pytest.mark.parametrize("name", list(ACQUISITIONS))
class TestContract:
    @pytest.mark.parametrize(("models", "box"), [(2, (0.0, 1.0)), (4, (-0.5, 2.0))])
    def test_proposals_are_in_the_box_and_differ(self, name: str, models: int, box: tuple[float, float]) -> None:
        found, facts = acquisition(name).propose(known(20, models, box=box), 3, seed=0)
        assert found.shape == (3, models)
        assert ((found >= box[0]) & (found <= box[1])).all()
        assert len(np.unique(found.round(6), axis=0)) == 3
        json.dumps(facts, allow_nan=False)

    def test_the_seed_decides(self, name: str) -> None:
        one, two = (acquisition(name).propose(known(), 2, seed=5)[0] for _ in range(2))
        assert np.array_equal(one, two)

    def test_failed_evaluations_take_no_part(self, name: str) -> None:
        full = known()
        metrics_KT = full.metrics_KT.copy()
        metrics_KT[2, 0] = np.nan
        fits = tuple(fit_quadratic(full.coefficients_KN, metrics_KT[:, t]) for t in range(2))
        broken = Known(
            full.coefficients_KN, metrics_KT, full.noise_KT, fits, full.box_N2, full.objectives, full.pending_QN
        )
        assert np.isfinite(acquisition(name).propose(broken, 2, seed=0)[0]).all()


@given(st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_angles_and_direction_are_inverse(models: int, seed: int) -> None:
    points = np.random.default_rng(seed).random((5, models))
    found = angles(points)
    assert ((found >= 0) & (found <= QUARTER)).all()
    for point, own in zip(points, found, strict=True):
        np.testing.assert_allclose(direction(own), point / np.linalg.norm(point), atol=1e-9)


def test_angles_of_two_coefficients_are_the_plane_angle() -> None:
    points = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(angles(points)[:, 0], [0, np.pi / 4, np.pi / 2, 0])
    assert cells(points, 4) == [(0,), (2,), (3,), (0,)]


def test_empty_cells_come_first() -> None:
    scores = {(0,): 1.0, (1,): 3.0, (2,): 2.0}
    posterior, of_empty = softmax(scores, 5.0, 0.07)
    assert sum(posterior.values()) + of_empty == pytest.approx(1)
    assert posterior[1,] == pytest.approx(of_empty / 5)  # each empty cell is as likely as the worst known one
    assert posterior[0,] < posterior[2,] < posterior[1,]
    assert of_empty > 0.8
    assert softmax({}, 4.0, 0.07) == ({}, 1.0)


def test_softmax_is_that_of_standardised_scores() -> None:
    scores = {(0,): 0.1, (1,): 0.4, (2,): 0.2}
    posterior, of_empty = softmax(scores, 0.0, 0.5)
    values = np.array(list(scores.values()))
    expected = np.exp((values - values.mean()) / values.std() / 0.5)
    np.testing.assert_allclose(list(posterior.values()), expected / expected.sum())
    assert of_empty == 0


def test_points_go_where_errors_are_large() -> None:
    """With every cell occupied and the error in one of them, nearly every proposal is there."""
    rng = np.random.default_rng(0)
    angle_K = (np.arange(40) % 4 + 0.1 + 0.8 * rng.random(40)) * QUARTER / 4
    c_KN = (0.3 + 0.6 * rng.random(40))[:, None] * np.stack([np.cos(angle_K), np.sin(angle_K)], axis=1)
    off_K = np.where(np.arange(40) % 4 == 2, 0.3 * rng.choice([-1, 1], 40), 0)
    metrics = np.stack([c_KN[:, 0] + off_K, c_KN[:, 1] + off_K], axis=1)
    goals = Objectives(("a", "b"), (True, True), (None, None), (None, None))
    fits = tuple(fit_quadratic(c_KN, metrics[:, t]) for t in range(2))
    box_N2 = np.array([[0.0, 1.0]] * 2)
    told = Known(c_KN, metrics, np.full_like(metrics, np.nan), fits, box_N2, goals, np.empty((0, 2)))
    found = [AngularBins(AngularBinsOptions()).propose(told, 1, seed=seed)[0][0] for seed in range(30)]
    assert sum(cells(np.array(found), 4)[i] == (2,) for i in range(30)) >= 25


def test_lengths_reach_the_corner_of_the_box() -> None:
    empty = Known(
        np.empty((0, 2)),
        np.empty((0, 2)),
        np.empty((0, 2)),
        (),
        np.array([[0.0, 1.0]] * 2),
        Objectives(("a", "b"), (True, True), (None, None), (None, None)),
        np.empty((0, 2)),
    )
    found, _ = AngularBins(AngularBinsOptions()).propose(empty, 400, seed=0)
    assert found.min(axis=1).max() > 0.8
    assert found.max() <= 1.0


def test_five_objectives_are_scalarised() -> None:
    c_KN = sample("sobol", 12, box=[(0, 1)] * 2, seed=0)
    metrics = np.stack([1 - (c_KN[:, 0] - t / 4) ** 2 - 0.1 * c_KN[:, 1] * t for t in range(5)], axis=1)
    goals = Objectives(tuple("abcde"), (True,) * 5, (None,) * 5, (None,) * 5)
    fits = tuple(fit_quadratic(c_KN, metrics[:, t]) for t in range(5))
    told = Known(c_KN, metrics, np.full_like(metrics, 0.01), fits, np.array([[0.0, 1.0]] * 2), goals, np.empty((0, 2)))
    found, _ = acquisition("hypervolume").propose(told, 2, seed=0)
    assert found.shape == (2, 2)


def test_verified_points_lie_on_the_front_and_apart_from_what_is_known() -> None:
    told = known(20)
    found, facts = acquisition("front").propose(told, 4, seed=0)
    again, _ = acquisition("front").propose(replace(told, pending_QN=found), 4, seed=0)
    for points in (found, again):
        predicted = np.stack([fit.surrogate.predict(points) for fit in told.fits], axis=1)
        assert non_dominated(predicted, maximise=told.objectives.maximise).all()
    apart = np.linalg.norm(found[:, None] - np.concatenate([told.coefficients_KN, again])[None], axis=2)
    assert apart.min() > 1e-3
    assert facts["points on the front"] > 4


def test_a_front_of_one_point_still_fills_the_batch() -> None:
    c_KN = sample("sobol", 12, box=[(0, 1)] * 2, seed=0)
    metrics = np.repeat(-((c_KN - 0.5) ** 2).sum(axis=1)[:, None], 2, axis=1)  # both tasks want the same
    goals = Objectives(("a", "b"), (True, True), (None, None), (None, None))
    fits = tuple(fit_quadratic(c_KN, metrics[:, t]) for t in range(2))
    told = Known(c_KN, metrics, np.full_like(metrics, 0.01), fits, np.array([[0.0, 1.0]] * 2), goals, np.empty((0, 2)))
    found, _ = acquisition("front").propose(told, 5, seed=0)
    assert len(np.unique(found, axis=0)) == 5
    assert np.abs(found - 0.5).max() < 0.5


@pytest.mark.parametrize(
    ("verify", "evaluated", "expected"), [(3, 12, 1), (3, 13, 2), (3, 14, 2), (0, 12, 0), (1, 12, 5), (1, 11, 0)]
)
def test_every_so_manieth_candidate_is_a_point_of_the_front(verify: int, evaluated: int, expected: int) -> None:
    cls = ACQUISITIONS.get("hypervolume")
    chosen = cls(cls.Options(**QUICK["hypervolume"], verify=verify))
    told = known(evaluated)
    found, facts = chosen.propose(told, 5, seed=0)
    assert len(found) == 5
    assert ("points on the front" in facts) == (expected > 0)
    assert len(facts.get("log expected improvement", [])) == 5 - expected
    predicted = np.stack([fit.surrogate.predict(found[5 - expected :]) for fit in told.fits], axis=1)
    assert non_dominated(predicted, maximise=told.objectives.maximise).all()
