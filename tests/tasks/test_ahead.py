"""A round that is chosen in a thread: once, and what goes wrong is told to whoever waits for it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mergecore.errors import NumericalError
from tasks.ahead import Ahead, Asked


def test_it_is_asked_for_once_and_beside_the_caller() -> None:
    go, asked = threading.Event(), Asked(np.zeros((1, 2)), np.ones((1, 2), dtype=bool), "", cut=False)
    calls = []

    def ask() -> Asked:
        calls.append(threading.current_thread())
        go.wait(30)
        return asked

    ahead = Ahead(ask)
    assert not calls
    assert not ahead.ready()
    go.set()
    assert ahead.result() is asked
    assert ahead.ready()
    assert ahead.found() is asked
    assert len(calls) == 1
    assert calls[0] is not threading.current_thread()


def test_what_goes_wrong_is_told_when_it_is_waited_for() -> None:
    def ask() -> Asked:
        raise NumericalError("Nothing usable.")

    ahead = Ahead(ask)
    with pytest.raises(NumericalError, match="Nothing usable"):
        ahead.result()
    assert ahead.found() is None
