"""The ledger: evaluations are facts, durable before they are used, found again by their content.

One row is one metric of one (coefficient vector, task). Any number of processes may read and write at the same time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergecore.errors import EvaluationError, InputError

SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluations (
    key TEXT NOT NULL,
    metric TEXT NOT NULL,
    value REAL,
    noise REAL,
    reason TEXT NOT NULL DEFAULT '',
    task TEXT NOT NULL,
    coefficients TEXT NOT NULL,
    matrix TEXT NOT NULL,
    examples INTEGER NOT NULL,
    seconds REAL NOT NULL,
    worker TEXT NOT NULL,
    recorded REAL NOT NULL,
    PRIMARY KEY (key, metric)
) WITHOUT ROWID
"""
FORMAT = 1
BUSY_SECONDS = 60


@dataclass(frozen=True)
class Fact:
    """One evaluation.

    Attributes:
        key: content key, from `Study.evaluation_key`.
        metrics: name to value; empty when it failed.
        noise: standard errors where known.
        reason: why it failed; empty when it did not.
        task: name of the task, for people who read the file.
        coefficients: [N].
        matrix: key of the task matrix.
        examples: examples seen.
        seconds: time of the evaluation.
        worker: who did it.
    """

    key: str
    metrics: Mapping[str, float]
    noise: Mapping[str, float]
    reason: str
    task: str
    coefficients: tuple[float, ...]
    matrix: str
    examples: int
    seconds: float
    worker: str


class Ledger:
    """A SQLite file in write-ahead mode; every `record` is on disk when it returns.

    Args:
        path: the file; created with its folder when missing.

    Raises:
        InputError: the file is no ledger, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")  # an evaluation counts once it is on disk
            found = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise InputError(f"The ledger {str(path)!r} was written by another version ({found}).")
            self._connection.execute(SCHEMA)
            self._connection.execute(f"PRAGMA user_version = {FORMAT}")
        except sqlite3.DatabaseError as error:
            raise InputError(f"The ledger {str(path)!r} cannot be used: {error}.") from None

    def record(self, fact: Fact, metric: str) -> None:
        """`record_all` of one evaluation."""
        self.record_all([(fact, metric)])

    def record_all(self, facts: Iterable[tuple[Fact, str]]) -> None:
        """Store finished or failed evaluations, all of them or none; a success is never replaced by a failure.

        Args:
            facts: each evaluation with the metric that the study asked for; a failure is recorded under this name.

        Raises:
            EvaluationError: the disk is full or the file cannot be written; nothing was stored.
        """
        rows = [row for fact, metric in facts for row in _rows(fact, metric)]
        statement = (
            "INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (key, metric) DO UPDATE SET "
            "value = excluded.value, noise = excluded.noise, reason = excluded.reason, seconds = excluded.seconds, "
            "worker = excluded.worker, recorded = excluded.recorded WHERE evaluations.reason != ''"
        )
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(statement, rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise EvaluationError(
                f"The ledger {str(self._path)!r} cannot be written: {error}.",
                "Everything recorded so far is kept; run again to continue.",
            ) from None

    def find(self, keys: Iterable[str], metric: str) -> dict[str, Fact]:
        """The stored evaluations among ``keys`` that have ``metric``, failed ones included."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Fact] = {}
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = self._connection.execute(
                f"SELECT key, value, noise, reason, task, coefficients, matrix, examples, seconds, worker "
                f"FROM evaluations WHERE metric = ? AND key IN ({marks})",
                (metric, *part),
            )
            for key, value, noise, reason, task, coefficients, matrix, examples, seconds, worker in rows:
                found[key] = Fact(
                    key=key,
                    metrics={} if reason else {metric: float("nan") if value is None else value},
                    noise={} if noise is None else {metric: noise},
                    reason=reason,
                    task=task,
                    coefficients=tuple(json.loads(coefficients)),
                    matrix=matrix,
                    examples=examples,
                    seconds=seconds,
                    worker=worker,
                )
        return found

    def coefficients(self, matrix: str) -> list[tuple[float, ...]]:
        """The coefficient vectors that were evaluated on a task matrix, by its content key; distinct and sorted."""
        rows = self._connection.execute("SELECT DISTINCT coefficients FROM evaluations WHERE matrix = ?", (matrix,))
        # -0.0 and 0.0 are one coefficient
        return sorted({tuple(c + 0.0 for c in json.loads(text)) for (text,) in rows})

    def __len__(self) -> int:
        """Number of evaluations, failed ones included."""
        return int(self._connection.execute("SELECT COUNT(DISTINCT key) FROM evaluations").fetchone()[0])

    def close(self) -> None:
        """Close the file; facts are already on disk."""
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _rows(fact: Fact, metric: str) -> list[tuple[object, ...]]:
    """A row for each metric of an evaluation; one without a value where it failed."""
    found = {metric: None} if fact.reason else fact.metrics
    common = (fact.task, json.dumps(fact.coefficients), fact.matrix, fact.examples, fact.seconds, fact.worker)
    now = time.time()
    return [(fact.key, name, value, fact.noise.get(name), fact.reason, *common, now) for name, value in found.items()]
