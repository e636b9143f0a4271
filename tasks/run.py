"""What the stages of one run share: the study, its folder, the workers, tracking, progress and timings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed

from mergecore.config import StudyConfig
from mergecore.data.cache import decoded
from mergecore.files import check_writable, writable_home
from mergecore.run_folder import RUN_FILES, finished_with
from mergecore.study import Study
from tasks.artifacts import Progress, tell
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
        unchanged: how the flow ends at once where this folder holds this study's front already; None elsewhere.
        started: wall clock at the start, seconds.
        timings: seconds by stage, in order.
        decoded: examples that were decoded or tokenised to prepare the study.
        spent: what the search took: pairs, minutes, why it ended.
        convergence: what each of its rounds brought (`mergecore.search.convergence.Round`).
        ahead: (content key, metric) of what was evaluated ahead of the round that it belongs to.
    """

    study: Study
    folder: Path
    pool: WorkerPool
    tracker: Tracker
    started: float
    unchanged: Any = None
    timings: dict[str, float] = field(default_factory=dict)
    decoded: int = 0
    spent: dict[str, Any] = field(default_factory=dict)
    convergence: list[dict[str, Any]] = field(default_factory=list)
    ahead: set[tuple[str, str]] = field(default_factory=set)

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
def open_run(config: StudyConfig, out: str | None, *, files: Sequence[str] = RUN_FILES) -> Iterator[Run]:
    """Prepare a study and open what its stages need; everything is closed when the block ends, however it ends.

    Args:
        config: the study.
        out: the run's folder; default ``runs/NAME``.
        files: what a finished run leaves in it.

    Raises:
        InputError: the study cannot work, or nothing can be written to its folder or to MERGECORE_HOME.
    """
    started = time.time()
    begun, before = time.perf_counter(), decoded()
    home = writable_home()
    folder = Path(out) if out else Path("runs") / config.name
    check_writable(folder)
    study = prepare_study(config, home)
    timings = {"prepare": time.perf_counter() - begun}
    with Tracker(study, folder) as tracker, WorkerPool(study) as pool:
        unchanged = _unchanged(study, folder, tracker, files)
        if unchanged is None:
            tracker.begin()
        yield Run(study, folder, pool, tracker, started, unchanged, timings, decoded() - before)


def _unchanged(study: Study, folder: Path, tracker: Tracker, files: Sequence[str]) -> State[str] | None:
    """The end of a run that would find what is there: same config, same content, same code."""
    config = study.config
    if config.budget.warm_start or config.execution.retry_failed:
        return None  # what follows depends on more than the study
    finished = finished_with(folder, study.digest)
    if not finished or not all((folder / name).is_file() for name in files) or tracker.interrupted:
        return None
    message = f"Nothing changed since {finished}: the front in {str(folder)!r} stands."
    tell(message)
    return Completed(name="Unchanged", message=message, data=str(folder))


__all__ = ["Progress", "Run", "open_run"]
