"""When a worker counts as hung: by the user's limit, never, or by what was seen so far."""

from __future__ import annotations

import math

import pytest

from tasks.patience import Patience
from tasks.workers import Gradient, Job


@pytest.mark.parametrize(("minutes", "expected"), [(None, math.inf), (0.5, 30.0), (90, 5400.0)])
def test_a_given_limit_holds_whatever_was_seen(minutes: float | None, expected: float) -> None:
    patience = Patience(minutes)
    assert patience.seconds(Job) == expected
    for _ in range(9):
        patience.observe(Job, 400.0)
    assert patience.seconds(Job) == expected


def test_nothing_is_known_of_the_first_ones() -> None:
    patience = Patience("auto")
    for _ in range(4):
        patience.observe(Job, 1.0)
    assert patience.seconds(Job) == math.inf
    patience.observe(Job, 1.0)
    assert patience.seconds(Job) == 600


def test_the_longest_counts_twenty_times() -> None:
    patience = Patience("auto")
    for seconds in (40.0, 100.0, 3.0, 3.0, 3.0):
        patience.observe(Job, seconds)
    assert patience.seconds(Job) == 2000


def test_each_kind_of_work_has_its_own() -> None:
    patience = Patience("auto")
    for _ in range(5):
        patience.observe(Gradient, 50.0)
    assert patience.seconds(Gradient) == 1000
    assert patience.seconds(Job) == math.inf
