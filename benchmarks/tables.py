"""Results as markdown on the terminal and in `benchmarks/results/`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A markdown table; floats to four significant digits."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    """What results were measured on."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def write_table(name: str, rows: Sequence[Mapping[str, object]], *, note: str) -> None:
    """Print a table and keep it as ``results/<name>.md`` with what it was measured on."""
    text = markdown(rows)
    print(text, f"\n{note}\n", flush=True)
    RESULTS.mkdir(exist_ok=True)
    body = f"# {name}\n\n{note}\n\nMade by `python -m benchmarks {name}` on {machine()}.\n\n{text}\n"
    (RESULTS / f"{name}.md").write_text(body)
