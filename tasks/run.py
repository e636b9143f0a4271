"""What the stages of one run share: the study, its folder, the workers, tracking, progress and timings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergecore.config import StudyConfig
from mergecore.data.cache import decoded
from mergecore.files import home_folder
from mergecore.study import Study
from tasks.artifacts import Progress
from tasks.study import prepare_study
from tasks.tracking import Tracker
from tasks.workers import WorkerPool


@dataclass
class Run:
    """One run in progress.

    Attributes:
        study: what is merged and measured.
        folder: where the run's files go.
        pool: the workers.
        tracker: the MLflow run.
        started: wall clock at the start, seconds.
        timings: seconds by stage, in order.
        decoded: examples that were decoded or tokenised to prepare the study.
        spent: what the search took: pairs, minutes, why it ended.
        convergence: what each of its rounds brought (`mergecore.search.convergence.Round`).
    """

    study: Study
    folder: Path
    pool: WorkerPool
    tracker: Tracker
    started: float
    timings: dict[str, float] = field(default_factory=dict)
    decoded: int = 0
    spent: dict[str, Any] = field(default_factory=dict)
    convergence: list[dict[str, Any]] = field(default_factory=list)

    def on(self, study: Study) -> Run:
        """The same run, with another study in work."""
        return replace(self, study=study)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``timings[name]``."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - begun


@contextmanager
def open_run(config: StudyConfig, out: str | None) -> Iterator[Run]:
    """Prepare a study and open what its stages need; everything is closed when the block ends, however it ends."""
    started = time.time()
    begun, before = time.perf_counter(), decoded()
    home = home_folder()
    study = prepare_study(config, home)
    folder = Path(out) if out else Path("runs") / config.name
    timings = {"prepare": time.perf_counter() - begun}
    with Tracker(study, folder) as tracker, WorkerPool(study) as pool:
        yield Run(study, folder, pool, tracker, started, timings, decoded() - before)


__all__ = ["Progress", "Run", "open_run"]
