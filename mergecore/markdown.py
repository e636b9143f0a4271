"""Tables in markdown, whatever their cells hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

_MARKS = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;"))


def cell(value: object) -> str:
    """Text that stays one cell of a table and no markup; numbers with four significant digits, NaN empty."""
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}"
    text = str(value)
    for character, safe in _MARKS:
        text = text.replace(character, safe)
    return " ".join(text.split())


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; its cells are those of `cell`."""
    lines = [_line(columns), "|" + "---|" * len(columns), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(values: Sequence[object]) -> str:
    return "| " + " | ".join(map(cell, values)) + " |"
