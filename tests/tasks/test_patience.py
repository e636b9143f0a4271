"""When a worker counts as hung: by the user's limit, never, or by what was seen so far."""

from __future__ import annotations

import math

import pytest

from tasks.patience import Patience

JOB = (0, 1)


@pytest.mark.parametrize(("minutes", "expected"), [(None, math.inf), (0.5, 30.0), (90, 5400.0)])
def test_a_given_limit_holds_whatever_was_seen(minutes: float | None, expected: float) -> None:
    patience = Patience(minutes)
    assert patience.seconds(JOB) == expected
    for _ in range(9):
        patience.observe(JOB, 400.0)
    assert patience.seconds(JOB) == expected


def test_nothing_is_known_of_the_first_ones() -> None:
    patience = Patience("auto")
    for _ in range(4):
        patience.observe(JOB, 1.0)
    assert patience.seconds(JOB) == math.inf
    patience.observe(JOB, 1.0)
    assert patience.seconds(JOB) == 600


def test_the_longest_counts_twenty_times() -> None:
    patience = Patience("auto")
    for seconds in (40.0, 100.0, 3.0, 3.0, 3.0):
        patience.observe(JOB, seconds)
    assert patience.seconds(JOB) == 2000


def test_each_kind_of_work_has_its_own() -> None:
    """Candidates on held-out data, or on all of it, may take a hundred times as long."""
    patience = Patience("auto")
    for _ in range(5):
        patience.observe((0, 1), 50.0)
    assert patience.seconds((0, 1)) == 1000
    assert patience.seconds((2, 3)) == math.inf
