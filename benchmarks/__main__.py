"""Run benchmarks by name: ``python -m benchmarks [NAME …]``; without a name all of them, the quick ones first."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = (
    "merge_kernel",
    "low_rank",
    "surrogate_front",
    "preprocessing_once",
    "transform_cost",
    "whole_stack",
    "digits_fronts",
    "sample_efficiency",
)


def main() -> None:
    """Run the named benchmarks one after the other."""
    names = sys.argv[1:] or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.exit(f"Unknown benchmark {unknown[0]!r}. Known: {', '.join(NAMES)}.")
    for name in names:
        print(f"\n## {name}\n", flush=True)
        import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
