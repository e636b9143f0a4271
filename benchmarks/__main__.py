"""Run benchmarks by name: ``python -m benchmarks [NAME …]``; without a name all of them, the quick ones first.

Names of studies after ``nested_map`` and ``sample_efficiency`` say what is measured.
"""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = (
    "merge_kernel",
    "low_rank",
    "surrogate_front",
    "preprocessing_once",
    "scaling",
    "pwe_moe_step",
    "exact_pareto",
    "transform_cost",
    "whole_stack",
    "large_study",
    "digits_fronts",
    "data_subsets",
    "nested_map",
    "sample_efficiency",
    "bayesian_rounds",
    "stopping",
    "overlap",
)
OF_STUDIES = ("nested_map", "sample_efficiency")
"""Take the names of studies."""


def main() -> None:
    """Run the named benchmarks one after the other."""
    names = sys.argv[1:] or list(NAMES)
    studies = names[1:] if names[0] in OF_STUDIES and not set(names[1:]) <= set(NAMES) else []
    names = names[: len(names) - len(studies)]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.exit(f"Unknown benchmark {unknown[0]!r}. Known: {', '.join(NAMES)}.")
    for name in names:
        print(f"\n## {name}\n", flush=True)
        main_of = import_module(f"benchmarks.{name}").main
        main_of(studies) if studies else main_of()


if __name__ == "__main__":
    main()
