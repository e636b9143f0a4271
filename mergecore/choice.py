"""What a user may ask of a finished run or comparison: which point of its front."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mergecore.comparison.pick import is_comparison, pick_method_point, read_method
from mergecore.errors import InputError
from mergecore.pick import Pick, pick_point
from mergecore.run_folder import read_run
from mergecore.run_record import RunRecord
from mergecore.section import Section


class Choice(Section):
    """One point of a front; one way of choosing it."""

    prefer: dict[str, float] = Field(default_factory=dict, description="Task to preference.")
    at_least: dict[str, float] = Field(default_factory=dict, description="Task to a bound that must be met.")
    maximize: str | None = Field(None, description="The task to make best within the bounds.")
    knee: bool = Field(False, description="The knee of the front.")
    verified: bool = Field(False, description="Only points that were evaluated for real.")
    method: str | None = Field(None, description="Of a comparison: whose point.")
    models: int | None = Field(None, description="Of a comparison: for how many models.")


def choose(folder: Path, choice: Choice) -> tuple[RunRecord, Pick]:
    """The record of a run, or of one method of a comparison, and the point of it.

    Raises:
        InputError: no such folder, task, method or point; no way or two ways of choosing.
    """
    compared = is_comparison(folder)
    if not compared and (choice.method or choice.models):
        raise InputError(f"{str(folder)!r} is no comparison, so --method and --models mean nothing.")
    record = read_method(folder, choice.method, choice.models) if compared else read_run(folder)
    point = (pick_method_point if compared else pick_point)(
        record,
        prefer=choice.prefer or None,
        at_least=choice.at_least or None,
        maximize=choice.maximize,
        at_knee=choice.knee,
        verified=choice.verified,
    )
    return record, point
