"""A round on a part of the data: who is grown, what the others are told, what was counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mergecore.budget import Tally
from mergecore.fidelity import Correction
from mergecore.search import Objectives
from tasks import parts
from tasks.evaluation import Evaluations

SHARE = np.array([0.25, 0.25])
GOALS = Objectives(("a", "b"), (True, False), (0.0, 0.0), (1.0, None))


def whole_metrics(c_KN: np.ndarray) -> np.ndarray:
    return np.column_stack([c_KN[:, 0], c_KN[:, 0] ** 2 + c_KN[:, 1]])


class FakeEvaluate:
    """Metrics of coefficients on the part (indices 2, 3: shifted) or on all data; some fail, some come too late."""

    def __init__(self, *, failing: tuple[int, ...] = (), in_time: int = 99) -> None:
        self.asked: list[tuple[list[int], int]] = []
        self._failing, self._in_time = failing, in_time

    def __call__(self, run: Any, c_KN: np.ndarray, measured: list[int], **rest: Any) -> Evaluations:
        on_part = measured == [2, 3]
        self.asked.append((measured, len(c_KN)))
        kept = np.arange(len(c_KN)) if on_part else np.arange(min(len(c_KN), self._in_time))
        metrics = whole_metrics(c_KN[kept]) - (np.array([0.05, 0.1]) if on_part else 0.0)
        failed = np.isin(kept, self._failing) & on_part
        metrics[failed, 0] = np.nan
        return Evaluations(
            coefficients_KN=c_KN[kept],
            metrics_KM=metrics,
            noise_KM=np.full(metrics.shape, 0.02 if on_part else 0.01),
            seconds_K=np.full(len(kept), 1.0 if on_part else 4.0),
            workers=["w"] * len(kept),
            reasons=["a: died" if bad else "" for bad in failed],
            fresh=2 * len(kept),
            wanted_KM=np.ones(metrics.shape, dtype=bool),
            places_K=kept,
            complete=len(kept) == len(c_KN),
            on_part=False,
            estimated_K=np.zeros(len(kept), dtype=bool),
        )


def round_of(monkeypatch: pytest.MonkeyPatch, fake: FakeEvaluate, c_KN: np.ndarray) -> Evaluations:
    monkeypatch.setattr(parts, "evaluate", fake)
    study = SimpleNamespace(
        part_tasks=[2, 3],
        search_tasks=[0, 1],
        objectives=GOALS,
        config=SimpleNamespace(budget=SimpleNamespace(grow=0.4)),
    )
    run: Any = SimpleNamespace(study=study)
    return parts.evaluate_by_parts(run, c_KN, Correction(SHARE, GOALS), label="round 0")


def test_some_are_measured_on_all_data_and_the_others_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    c_KN = np.random.default_rng(0).random((10, 2))
    found = round_of(monkeypatch, fake := FakeEvaluate(), c_KN)
    assert fake.asked == [([2, 3], 10), ([0, 1], 4)]
    grown = np.flatnonzero(~found.estimated_K)
    assert len(grown) == 4
    # a constant shift is learned exactly, so that estimates are what all data would have told
    np.testing.assert_allclose(found.metrics_KM[:, 1], whole_metrics(c_KN)[:, 1])
    np.testing.assert_allclose(found.noise_KM, 0.01, atol=1e-12)
    assert found.seconds_K.tolist() == [5.0 if k in grown else 1.0 for k in range(10)]
    assert (found.fresh, found.complete, found.on_part) == (28, True, True)
    tally = Tally(SHARE)
    found.count(tally)
    assert (tally.pairs, tally.full_pairs, tally.measurements) == (20, 20 * 0.25 + 8, 28)


def test_failures_are_neither_grown_nor_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    c_KN = np.random.default_rng(0).random((10, 2))
    best = (int(c_KN[:, 0].argmax()), int(c_KN[:, 1].argmin()))
    found = round_of(monkeypatch, FakeEvaluate(failing=best), c_KN)
    assert found.estimated_K[list(best)].all()
    assert np.isnan(found.metrics_KM[list(best), 0]).all()
    assert np.isfinite(np.delete(found.metrics_KM, best, axis=0)).all()
    assert [reason != "" for reason in found.reasons] == [k in best for k in range(10)]


def test_time_that_runs_out_leaves_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    c_KN = np.random.default_rng(0).random((10, 2))
    found = round_of(monkeypatch, FakeEvaluate(in_time=2), c_KN)
    assert not found.complete
    assert (~found.estimated_K).sum() == 2
    np.testing.assert_allclose(found.metrics_KM[:, 1], whole_metrics(c_KN)[:, 1])
    np.testing.assert_allclose(found.noise_KM[found.estimated_K], 0.02)  # two differences tell no deviation
    assert round_of(monkeypatch, FakeEvaluate(in_time=0), c_KN).estimated_K.all()
