"""Stage: open, check and fingerprint everything that a config names."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.config import StudyConfig
from mergecore.patterns import resolve_sources
from mergecore.study import Study, prepare
from tasks.artifacts import Progress


@task(name="prepare study", cache_policy=NO_CACHE)
def prepare_study(config: StudyConfig, home: Path) -> Study:
    """Checkpoints and data found, opened and checked, the task matrix built or found by content."""
    config = resolve_sources(config, home)
    with Progress("task vectors", unit="tensors") as progress:
        return prepare(config, home, progress=progress.update)
