"""Signals that are to end a run, while Ray works: they reach its process alone, and none is lost."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

_apart = False
"""Whether processes that are started now leave this process's group."""


def _leave_group() -> None:
    if _apart:
        os.setpgid(0, 0)


os.register_at_fork(after_in_child=_leave_group)


@contextmanager
def own_end() -> Iterator[None]:
    """Start Ray such that a signal to end ends this process's work in order.

    Prefect signals a whole process group, and without its servers Ray cannot stop workers; so they leave the group (and
    die with this process all the same). And Ray's handler, which would have this process exit, makes way for ours.
    """
    global _apart
    before = signal.getsignal(signal.SIGTERM)
    _apart = True
    try:
        yield
    finally:
        _apart = False
        if threading.current_thread() is threading.main_thread() and callable(before):
            signal.signal(signal.SIGTERM, before)


class Arrived(AbstractContextManager["Arrived"]):
    """Signals that arrive in the block, so that none is lost.

    A handler's exception comes up wherever the main thread is, also in a destructor or a library's callback, where it
    is dropped. Its number is kept beside that.
    """

    def __enter__(self) -> Arrived:
        self._ours = threading.current_thread() is threading.main_thread()
        if self._ours:
            self._numbers, self._told = socket.socketpair()
            for end in (self._numbers, self._told):
                end.setblocking(False)
            self._before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ours:
            signal.set_wakeup_fd(self._before)
            self._numbers.close()
            self._told.close()

    def handle(self) -> None:
        """Call the handler of each signal that has arrived: had its exception come through, we would not be here."""
        if not self._ours:
            return
        with suppress(BlockingIOError):
            for number in self._numbers.recv(1024):
                handler = signal.getsignal(number)
                if callable(handler):
                    handler(number, None)
