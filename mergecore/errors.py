"""The errors this package raises: one base, and input mistakes apart from everything else."""

from __future__ import annotations

from collections.abc import Sequence


class MergecoreError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: what was wrong and where, one sentence.
        hint: what to do or write instead, one sentence; empty when there is nothing to suggest.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without a closing full stop; its type where it has none."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first names, quoted, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


class InputError(MergecoreError):
    """The user's input cannot be used: a config, a checkpoint, a data set, an argument (exit code 2)."""


class NumericalError(MergecoreError):
    """A computation has no usable result: too few evaluations, nothing finite, nothing to fit."""


class EvaluationError(MergecoreError):
    """Evaluations could not be carried out at all, for instance because every worker keeps dying."""
