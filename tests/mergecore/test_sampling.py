"""Samplers: exact counts, boxes, anchors, and the same points in every process."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from mergecore.errors import InputError
from mergecore.sampling import SAMPLERS, near_models, sample

SIDES = st.tuples(st.floats(-10, 10), st.floats(0.001, 10)).map(lambda side: (side[0], side[0] + side[1]))


@pytest.mark.parametrize("sampler", SAMPLERS)
class TestEverySampler:
    @given(box=st.lists(SIDES, min_size=1, max_size=9), count=st.integers(1, 70), seed=st.integers(0, 2**31))
    @settings(max_examples=40, deadline=None)
    def test_gives_exactly_count_points_in_the_box(
        self, sampler: str, box: list[tuple[float, float]], count: int, seed: int
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            points = sample(sampler, count, box=box, seed=seed)
        assert points.shape == (count, len(box))
        assert (points >= np.array(box)[:, 0]).all()
        assert (points <= np.array(box)[:, 1]).all()

    @pytest.mark.parametrize("count", [8, 9, 31])
    def test_begins_with_base_and_single_models(self, sampler: str, count: int) -> None:
        points = sample(sampler, count, box=[(0, 1)] * 3, seed=0)
        assert np.array_equal(points[:4], [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
        assert len(np.unique(points, axis=0)) == count

    def test_leaves_anchors_out_of_a_small_budget(self, sampler: str) -> None:
        points = sample(sampler, 7, box=[(0, 1)] * 3, seed=0)
        assert not (points == 0).all(axis=1).any()
        assert np.array_equal(points, sample(sampler, 7, box=[(0, 1)] * 3, seed=0, anchors=False))

    def test_can_be_told_to_leave_anchors_out(self, sampler: str) -> None:
        points = sample(sampler, 20, box=[(0, 1)] * 3, seed=0, anchors=False)
        assert points.shape == (20, 3)
        assert not ((points == 0) | (points == 1)).all(axis=1).any()

    def test_takes_only_anchors_in_the_box(self, sampler: str) -> None:
        # base and the first single model are in this box, the second is not
        points = sample(sampler, 30, box=[(0, 1), (-1, 0.5)], seed=0)
        assert np.array_equal(points[:2], [[0, 0], [1, 0]])
        assert not (points == [0, 1]).all(axis=1).any()
        nothing = sample(sampler, 30, box=[(0.1, 1), (0.1, 1)], seed=0)
        assert np.array_equal(nothing, sample(sampler, 30, box=[(0.1, 1), (0.1, 1)], seed=0, anchors=False))

    def test_depends_on_the_seed_alone(self, sampler: str) -> None:
        one, same, other = (sample(sampler, 40, box=[(0, 1), (-1, 2)], seed=seed) for seed in (5, 5, 6))
        assert np.array_equal(one, same)
        assert not np.isclose(one[3:], other[3:]).any()

    def test_gives_the_same_points_in_another_process(self, sampler: str) -> None:
        script = (
            "from mergecore.sampling import sample\n"
            f"points = sample({sampler!r}, 13, box=[(0, 1), (-1, 2), (0.25, 0.5)], seed=77)\n"
            "print([[x.hex() for x in row] for row in points.tolist()])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        here = sample(sampler, 13, box=[(0, 1), (-1, 2), (0.25, 0.5)], seed=77)
        assert done.stdout.strip() == str([[x.hex() for x in row] for row in here.tolist()])


def test_sobol_covers_the_box_more_evenly_than_independent_draws() -> None:
    sobol, uniform = (sample(name, 250, box=[(0, 1)] * 8, seed=1, anchors=False) for name in ("sobol", "uniform"))
    assert qmc.discrepancy(sobol) < 0.5 * qmc.discrepancy(uniform)


def test_sobol_is_a_prefix_of_a_longer_sobol_sample() -> None:
    short, long = (sample("sobol", count, box=[(0, 1)] * 2, seed=1, anchors=False) for count in (20, 30))
    assert np.array_equal(short, long[:20])


def test_uniform_is_uniform() -> None:
    points = sample("uniform", 4000, box=[(-1, 3), (0, 1)], seed=0)
    np.testing.assert_allclose(points.mean(axis=0), [1, 0.5], atol=0.06)
    np.testing.assert_allclose(points.var(axis=0), [16 / 12, 1 / 12], rtol=0.06)


def test_simplex_shares_the_box_among_the_models() -> None:
    box = np.array([(-1.0, 3.0), (0.0, 0.5), (2.0, 3.0)])
    shares = (sample("simplex", 3000, box=box, seed=0, anchors=False) - box[:, 0]) / np.ptp(box, axis=1)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 3, atol=0.02)
    # a marginal of Dirichlet(1, 1, 1) is Beta(1, 2), with variance 1/18
    np.testing.assert_allclose(shares.var(axis=0), 1 / 18, rtol=0.08)


@pytest.mark.parametrize("count", [0, -3])
def test_refuses_an_empty_budget(count: int) -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        sample("sobol", count, box=[(0, 1)], seed=0)


def test_suggests_the_nearest_sampler() -> None:
    with pytest.raises(InputError, match="Did you mean 'sobol'"):
        sample("soboll", 5, box=[(0, 1)], seed=0)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([(0, 1), (1, 1)], "box of model 1"),
        ([(2, 1)], "box of model 0"),
        ([(0, np.inf)], "finite"),
        ([(np.nan, 1)], "finite"),
        ([0, 1], "shape"),
        ([(0, 1, 2)], "shape"),
        (np.empty((0, 2)), "shape"),
    ],
)
def test_refuses_a_bad_box(box: list[tuple[float, float]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        sample("uniform", 5, box=box, seed=0)


@given(count=st.integers(1, 70), models=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_near_models_are_a_little_past_the_hull_at_most(count: int, models: int, seed: int) -> None:
    points = near_models(count, models=models, seed=seed)
    assert points.shape == (count, models)
    assert (points >= 0).all()
    wanted = 0.2 + 1.2 * (np.arange(count) + 0.5) / count  # evenly from near the base to past the models
    np.testing.assert_allclose(np.sort(points.sum(axis=1)), wanted, rtol=1e-12)
    assert np.array_equal(points, near_models(count, models=models, seed=seed))


def test_near_models_share_out_evenly() -> None:
    points = near_models(1024, models=4, seed=0)
    shares = points / points.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 4, atol=0.01)
    np.testing.assert_allclose(shares.var(axis=0), 3 / 80, atol=0.003)  # of Dirichlet(1)
