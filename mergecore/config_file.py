"""Read a study's YAML file; what is wrong with it becomes one sentence."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mergecore.comparison.config import CompareConfig, MethodConfig, ReferenceConfig
from mergecore.config import ColumnsConfig, DatasetConfig, ModelConfig, StudyConfig, TaskConfig
from mergecore.errors import InputError, first_line
from mergecore.registry import did_you_mean
from mergecore.search import SEARCHES

MAX_CONFIG_BYTES = 1 << 20
MAX_CONFIG_NODES = 100_000
BRANCH = re.compile(r"int|float|(constrained-|function-|literal|tuple|list|nullable).*", re.ASCII)
"""How pydantic calls a branch of a union in a fault's place."""
RESOLVED = "resolved"
"""Key of a finished run's config.yaml under which it notes what it found: fingerprints and versions."""


def load_config(path: str | Path, overrides: list[str] | None = None) -> StudyConfig:
    """Read and validate a study's YAML file.

    Args:
        path: the file.
        overrides: ``"a.b=c"`` assignments, applied in order before validation; values are YAML.

    Raises:
        InputError: the file is missing, is not YAML, or does not describe a study; one sentence says where.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The config {str(path)!r} does not exist.")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InputError(
            f"The config {str(path)!r} is larger than {MAX_CONFIG_BYTES >> 20} MiB.", "Is it the right file?"
        )
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"The config {str(path)!r} is not readable YAML: {first_line(error)}.") from None
    if not isinstance(data, dict):
        raise InputError(f"The config {str(path)!r} does not hold a mapping of keys to values.")
    _check_size(data, path)
    for assignment in overrides or []:
        _assign(data, assignment)
    return parse_config(data, where=str(path))


def parse_config(data: dict[str, Any], *, where: str = "config") -> StudyConfig:
    """Validate a plain mapping; the first fault becomes an ``InputError`` that names its place.

    What a finished run added to its config.yaml is left aside, so that file is a config like any other.
    """
    try:
        return StudyConfig.model_validate({key: value for key, value in data.items() if key != RESOLVED})
    except ValidationError as error:
        raise InputError(f"In {where}: {_explain(error)}") from None


def _check_size(data: Any, path: Path) -> None:
    """Refuse a document whose aliases expand beyond reason: nested ones can mean gigabytes in a few lines."""
    sizes: dict[int, float] = {}

    def size(node: Any) -> float:
        if not isinstance(node, (dict, list)):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # an alias to something around itself
            sizes[id(node)] = 1 + sum(map(size, node.values() if isinstance(node, dict) else node))
        return sizes[id(node)]

    if size(data) > MAX_CONFIG_NODES:
        raise InputError(
            f"The config {str(path)!r} holds more than {MAX_CONFIG_NODES} values once its aliases are expanded."
        )


def _assign(data: dict[str, Any], assignment: str) -> None:
    key, separator, text = assignment.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise InputError(f"--set {assignment!r} is not of the form a.b=value.")
    node: Any = data
    for part in parts[:-1]:
        node = node[int(part)] if isinstance(node, list) and _is_index(part, node) else _child(node, part, assignment)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {assignment!r}: the value is not readable YAML: {first_line(error)}.") from None
    if isinstance(node, list) and _is_index(parts[-1], node):
        node[int(parts[-1])] = value
    elif isinstance(node, dict):
        node[parts[-1]] = value
    else:
        raise InputError(f"--set {assignment!r}: {'.'.join(parts[:-1])!r} holds no keys.")


def _is_index(part: str, node: list[Any]) -> bool:
    return part.isdigit() and int(part) < len(node)


def _child(node: Any, part: str, assignment: str) -> Any:
    if not isinstance(node, dict):
        raise InputError(f"--set {assignment!r}: there is nothing under {part!r}.")
    return node.setdefault(part, {})


def _explain(error: ValidationError) -> str:
    """One sentence for the first fault of a validation, with a suggestion for a misspelt key."""
    # an unknown key is most often the cause of the missing one beside it
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    alternatives = [fault for fault in error.errors() if _before_branches(fault) == _before_branches(first)]
    # of what may be this or that, what came furthest was meant; a word that may stand there instead is told beside
    first = max(alternatives, key=lambda fault: (len(_place(fault["loc"])), fault["type"] != "literal_error"))
    place = _place(first["loc"])
    words = [f["ctx"]["expected"] for f in alternatives if f["type"] == "literal_error" and f is not first]
    where = ".".join(place) or "the study"
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}. {did_you_mean(place[-1], _keys_at(place[:-1], first['loc']))}"
    if first["type"] == "missing" and place[-1].isdigit():
        return f"{'.'.join(place[:-1])}: too few values."
    if first["type"] == "missing":
        return f"the key {where!r} is missing."
    message = ", or ".join([first["msg"].removeprefix("Value error, ").rstrip("."), *words])
    message += "" if message.endswith("?") else "."
    return f"{where}: {message}" if place and first["type"] != "value_error" else message


def _before_branches(fault: Any) -> tuple[Any, ...]:
    """The part of a fault's place that alternatives share; all of it where there is no union."""
    return tuple(itertools.takewhile(lambda part: not BRANCH.fullmatch(str(part)), fault["loc"]))


def _place(location: tuple[Any, ...]) -> list[str]:
    """Where a fault is, without the branches of unions that pydantic names on the way."""
    return [str(part) for part in location if part not in SEARCHES and not BRANCH.fullmatch(str(part))]


def _keys_at(place: list[str], location: tuple[Any, ...]) -> list[str]:
    model: Any = StudyConfig
    for part in place:
        if part == "search":
            method = next((name for name in location if name in SEARCHES), "map")
            model = SEARCHES.get(method).Options
        elif not part.isdigit():
            model = {
                "models": ModelConfig,
                "tasks": TaskConfig,
                "dataset": DatasetConfig,
                "columns": ColumnsConfig,
                "compare": CompareConfig,
                "methods": MethodConfig,
                "references": ReferenceConfig,
            }.get(part) or getattr(StudyConfig.model_fields.get(part), "annotation", StudyConfig)
    return list(model.model_fields)
