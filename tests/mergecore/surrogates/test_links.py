"""Links: ranges, slopes and inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergecore.errors import InputError
from mergecore.surrogates.links import Link

LINKS = [Link(), Link(0, 1), Link(-3, 5), Link(2, None), Link(None, 100), Link(lower=-math.inf, upper=math.inf)]


@pytest.mark.parametrize(
    ("lower", "upper", "name"),
    [
        (None, None, "identity"),
        (-math.inf, math.inf, "identity"),
        (0, 1, "sigmoid"),
        (0, None, "softplus"),
        (0, math.inf, "softplus"),
        (None, 1, "softplus"),
        (-math.inf, 1, "softplus"),
    ],
)
def test_follows_from_the_bounds(lower: float | None, upper: float | None, name: str) -> None:
    assert Link(lower, upper).name == name


@pytest.mark.parametrize(
    ("lower", "upper"), [(1, 1), (2, 1), (math.nan, 1), (0, math.nan), (math.inf, None), (None, -math.inf)]
)
def test_refuses_bounds_without_room(lower: float | None, upper: float | None) -> None:
    with pytest.raises(InputError, match="cannot range"):
        Link(lower, upper)


def test_values_by_hand() -> None:
    q = np.array([0.0, math.log(3)])
    np.testing.assert_allclose(Link(0, 1).value(q), [0.5, 0.75], rtol=1e-15)
    np.testing.assert_allclose(Link(10, 20).value(q), [15, 17.5], rtol=1e-15)
    np.testing.assert_allclose(Link(1, None).value(q), [1 + math.log(2), 1 + math.log(4)], rtol=1e-15)
    np.testing.assert_allclose(Link(None, 1).value(q), [1 - math.log(2), 1 - math.log(4)], rtol=1e-15)
    assert np.array_equal(Link().value(q), q)


@pytest.mark.parametrize("link", LINKS)
def test_stays_finite_and_in_range_far_out(link: Link) -> None:
    with np.errstate(all="raise", under="ignore"):
        values = link.value(np.array([-1e6, -40.0, 0.0, 40.0, 1e6]))
        slopes = link.slope(np.array([-1e6, -40.0, 0.0, 40.0, 1e6]))
    assert np.isfinite(values).all()
    assert np.isfinite(slopes).all()
    assert (values >= (-math.inf if link.lower is None else link.lower)).all()
    assert (values <= (math.inf if link.upper is None else link.upper)).all()


@pytest.mark.parametrize("link", LINKS)
def test_slope_is_the_derivative(link: Link) -> None:
    q = np.linspace(-6, 6, 41)
    numeric = (link.value(q + 1e-6) - link.value(q - 1e-6)) / 2e-6
    np.testing.assert_allclose(link.slope(q), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("link", LINKS)
@given(q=st.floats(-12, 12))
def test_inverse_undoes_the_link(link: Link, q: float) -> None:
    assert link.inverse(link.value(np.array([q])))[0] == pytest.approx(q, abs=1e-8)


@pytest.mark.parametrize("link", [link for link in LINKS if link.name != "identity"])
def test_inverse_of_a_bound_gives_the_bound_back_exactly(link: Link) -> None:
    for bound in (link.lower, link.upper):
        if bound is not None:
            q = link.inverse(np.array([bound]))
            assert np.isfinite(q).all()
            assert link.value(q)[0] == bound


def test_inverse_beyond_a_bound_is_that_of_the_bound() -> None:
    assert Link(0, 1).value(Link(0, 1).inverse(np.array([-0.3, 1.7]))).tolist() == [0, 1]
    assert Link(2, None).value(Link(2, None).inverse(np.array([1.0]))).tolist() == [2]
    assert Link(None, 2).value(Link(None, 2).inverse(np.array([3.0]))).tolist() == [2]


def test_inverse_of_a_large_loss_does_not_overflow() -> None:
    assert Link(0, None).inverse(np.array([5000.0])).tolist() == [5000.0]


def test_inside_moves_only_what_is_near_a_bound() -> None:
    metrics = np.array([0.0, 0.01, 0.5, 1.0])
    np.testing.assert_allclose(Link(0, 1).inside(metrics, share=0.02), [0.02, 0.02, 0.5, 0.98])
    np.testing.assert_allclose(Link(0, None).inside(metrics, share=0.02), [0.0051, 0.01, 0.5, 1.0])
    np.testing.assert_allclose(Link(None, 1).inside(metrics, share=0.1), [0, 0.01, 0.5, 1 - 0.0745])
    np.testing.assert_allclose(Link(0, None).inside(np.zeros(3), share=0.02), 0.02)
    assert np.array_equal(Link().inside(metrics, share=0.02), metrics)
