"""``python -m benchmarks.suites build|run|compare|routers [NAME …]``."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml

from benchmarks.suites import COMPARED, ROUTED, SUITES
from benchmarks.suites.data import data_folder
from mergecore.files import home_folder

FINDINGS = Path(__file__).parent / "findings.yaml"
"""What there is to see in the comparisons, by suite."""


def main() -> None:
    """Build the named suites, all by default; run them, or compare methods on them, when told to."""
    verb, *names = sys.argv[1:] or ["", ""]
    known = {"compare": COMPARED, "routers": ROUTED}.get(verb, SUITES)
    if verb not in ("build", "run", "compare", "routers") or any(name not in known for name in names):
        sys.exit(
            f"Usage: python -m benchmarks.suites build|run [{' | '.join(SUITES)}] …\n"
            f"       python -m benchmarks.suites compare|routers {' | '.join(COMPARED)} …"
        )
    if data_folder() is None:
        print("Suites skipped: the folder of real data is not there (name it with MERGECORE_DATA).")
        return
    for name in names or known:
        module = import_module(f"benchmarks.suites.{name}")
        config = module.build(home_folder())
        if verb == "build":
            print(json.dumps(config, indent=1))
        elif verb == "compare":
            from benchmarks.suites.comparison import compare

            options = COMPARED[name]
            models = {count: module.multitask(home_folder(), count) for count in options["multitask_for"]}
            compare(
                config,
                description=SUITES[name],
                findings=yaml.safe_load(FINDINGS.read_text("utf-8"))[name],
                multitask=models,
                **options["budget"],
            )
        elif verb == "routers":
            from benchmarks.suites.comparison import compare_routers

            findings = yaml.safe_load(FINDINGS.read_text("utf-8"))[f"{name}, routers"]
            compare_routers(config, description=SUITES[name], findings=findings, **ROUTED[name])
        else:
            from benchmarks.suites.fronts import run

            run(config, description=SUITES[name])


if __name__ == "__main__":
    main()
