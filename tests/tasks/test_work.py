"""What actors are at: whose results are waited for, and for how long they have been."""

from __future__ import annotations

from collections import deque

import pytest

from tasks import work
from tasks.work import Job, Ongoing


def test_time_in_which_nobody_could_look_is_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that was stopped, or held up by a disk, finds answers that came meanwhile."""
    now = [0.0]
    monkeypatch.setattr(work.time, "monotonic", lambda: now[0])
    ongoing = Ongoing({"actor": deque([("answer", None)])})
    assert ongoing.owners() == {"answer": "actor"}
    for now[0] in (5.0, 12.0, 20.0):
        ongoing.look()
    assert ongoing.looked - ongoing.began["answer"] == 20
    now[0] = 3620.0
    ongoing.look()
    assert ongoing.looked - ongoing.began["answer"] == 20
    now[0] = 3625.0
    ongoing.owners()
    assert ongoing.looked - ongoing.began["answer"] == 25


def test_work_that_was_begun_is_waited_for_only_where_it_is_wanted() -> None:
    results: list[tuple[str, str]] = []

    def note(job: str, result: str, worker: str) -> None:
        results.append((job, result))

    ongoing = Ongoing({"actor": deque(), "other": deque()})
    chosen = iter([None, ["b", "c"], ["d"]])
    ongoing.want(["a"], note, lambda: next(chosen))
    ongoing.begin()
    assert list(ongoing.waiting) == ["a"]  # nobody has taken it
    ongoing.queues["actor"].append(("answer", ongoing.waiting.popleft()))
    ongoing.begin()
    assert not ongoing.waiting  # not chosen yet
    ongoing.begin()
    ongoing.queues["other"].append(("answer", ongoing.waiting.popleft()))
    assert (ongoing.under_way(), list(ongoing.waiting)) == (["a", "b"], ["c"])
    ongoing.begin()
    assert list(ongoing.waiting) == ["c"]
    assert ongoing.unfinished()
    ongoing.queues["actor"].popleft()
    ongoing.done("a", "1", "")
    assert not ongoing.unfinished()
    ongoing.want(["c", "b"], note)
    assert list(ongoing.waiting) == ["c"]
    assert ongoing.unfinished()
    ongoing.want(["d"], note)
    assert (list(ongoing.waiting), ongoing.ahead) == (["d"], ["b"])
    ongoing.queues["other"].popleft()
    ongoing.done("b", "2", "")
    assert ongoing.unfinished()
    assert results == [("a", "1"), ("b", "2")]


def test_what_is_tried_again_keeps_its_attempts_and_goes_before_what_nobody_waits_for() -> None:
    def jobs() -> list[Job]:
        return [Job((x,), (0,)) for x in (0.1, 0.2, 0.3, 0.4)]

    one, two, three, four = jobs()
    ongoing = Ongoing({"actor": deque()})
    ongoing.want([one, two], lambda *result: None, lambda: [three, four])
    ongoing.queues["actor"].extend([("answer", one), ("answer", two)])
    ongoing.waiting.clear()
    ongoing.begin()
    ongoing.queues["actor"].clear()
    ongoing.retry(two)
    ongoing.retry(one)
    assert list(ongoing.waiting) == [two, one, three, four]
    three.attempts = 1
    ongoing.retry(ongoing.waiting.pop())
    ongoing.want(jobs()[2:], lambda *result: None)
    assert [job.attempts for job in ongoing.waiting] == [1, 0]
    assert ongoing.ahead == []
