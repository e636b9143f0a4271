"""Stage: the quickstart's models, trained once and kept."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.digits import prepare
from mergecore.files import writable_home
from tasks.artifacts import Progress


@task(name="train digit models", cache_policy=NO_CACHE)
def train_digits(tasks: int, seed: int) -> None:
    """Pre-train the base and fine-tune one model a task, unless an earlier run did."""
    with Progress("training digit models", unit="%") as progress:
        prepare(
            writable_home(), tasks=tasks, seed=seed, progress=lambda _, share: progress.update(round(100 * share), 100)
        )
