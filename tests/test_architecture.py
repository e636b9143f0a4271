"""The arrows of the house: flows -> tasks -> mergecore, few importers of ray and mlflow, no engine in mergecore."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINES = {"prefect", "ray", "mlflow"}
ALLOWED = {
    "mergecore": {"mergecore"},
    "tasks": {"tasks", "mergecore", "prefect"},
    "flows": {"flows", "tasks", "mergecore", "prefect"},
}
IMPORTERS = {
    "ray": {"tasks/cluster.py", "tasks/workers.py"},
    "mlflow": {"tasks/tracking.py", "tasks/serving.py", "tasks/model_registry.py"},
}
"""Who may import an engine: Ray's cluster and work on it; logging to MLflow, serving, registering."""


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def sources() -> list[Path]:
    return [file for folder in ALLOWED for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_direct_imports(file: Path) -> None:
    place = str(file.relative_to(ROOT))
    governed = imported(file) & (ENGINES | set(ALLOWED))
    allowed = ALLOWED[place.split("/")[0]] | {name for name, places in IMPORTERS.items() if place in places}
    assert governed <= allowed


def test_mergecore_loads_no_engine() -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in (ROOT / "mergecore").rglob("*.py")
    ]
    script = f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    script += f"print(sorted({ENGINES!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick_to_import() -> None:
    script = (
        "import sys, flows.cli\nprint(sorted({'torch', 'ray', 'mlflow', 'prefect', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_module_is_more_than_one_room() -> None:
    long = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in sources()}
    assert not {name: lines for name, lines in long.items() if lines > 450}
