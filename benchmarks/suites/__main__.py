"""``python -m benchmarks.suites build|run [NAME …]``."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.suites import SUITES
from benchmarks.suites.data import data_folder
from mergecore.files import home_folder


def main() -> None:
    """Build the named suites, all by default; run them too when told to."""
    verb, *names = sys.argv[1:] or ["", ""]
    unknown = [name for name in names if name not in SUITES]
    if verb not in ("build", "run") or unknown:
        sys.exit(f"Usage: python -m benchmarks.suites build|run [{' | '.join(SUITES)}] …")
    if data_folder() is None:
        print("Suites skipped: the folder of real data is not there (name it with MERGECORE_DATA).")
        return
    for name in names or SUITES:
        config = import_module(f"benchmarks.suites.{name}").build(home_folder())
        if verb == "build":
            print(json.dumps(config, indent=1))
        else:
            from benchmarks.suites.fronts import run

            run(config, description=SUITES[name])


if __name__ == "__main__":
    main()
