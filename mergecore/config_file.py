"""Read a study's YAML file; what is wrong with it becomes one sentence."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
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
    if first["type"] == "extra_forbidden":
        *parents, key = first["loc"]
        place = [*_place(parents), str(key)]
        return f"unknown key {'.'.join(place)!r}. {did_you_mean(place[-1], _keys_at(place[:-1], first['loc']))}"
    first, words = _meant(first, error.errors())
    place = _place(first["loc"])
    where = ".".join(place) or "the study"
    if first["type"] == "missing" and place[-1].isdigit():
        return f"{'.'.join(place[:-1])}: too few values."
    if first["type"] == "missing":
        return f"the key {where!r} is missing."
    message = ", or ".join([first["msg"].removeprefix("Value error, ").rstrip("."), *words])
    message += "" if message.endswith("?") else "."
    return f"{where}: {message}" if place and first["type"] != "value_error" else message


def _meant(first: Any, faults: list[Any]) -> tuple[Any, list[str]]:
    """Of the faults of what may be this or that, that of the one which was meant; and words that may stand there.

    That is the one with the fewest faults, and of equals the one that went well for longest.
    """
    shared = len(list(itertools.takewhile(lambda part: not BRANCH.fullmatch(str(part)), first["loc"])))
    if shared == len(first["loc"]):
        return first, []
    branches: dict[str, list[Any]] = {}
    for fault in faults:
        if fault["loc"][:shared] == first["loc"][:shared]:
            branches.setdefault(str(fault["loc"][shared]), []).append(fault)

    def unlikely(branch: list[Any]) -> tuple[int, int, bool]:
        position = next((part for part in branch[0]["loc"][shared:] if isinstance(part, int)), -1)
        return len(branch), -position, branch[0]["type"] == "literal_error"

    (meant, *_), *others = sorted(branches.values(), key=unlikely)
    same = [fault for fault, *_ in others if _place(fault["loc"]) == _place(meant["loc"])]
    return meant, [fault["ctx"]["expected"] for fault in same if fault["type"] == "literal_error"]


def _place(location: Sequence[Any]) -> list[str]:
    """Where a fault is, without what pydantic names on the way: the search method, the branches of unions."""
    return [
        str(part)
        for before, part in zip(("", *location), location, strict=False)
        if not BRANCH.fullmatch(str(part)) and not (before == "search" and part in SEARCHES)
    ]


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
