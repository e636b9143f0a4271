"""Sources that are found when a run begins: one `*` stands for as many models as match, an alias for a version.

A study over whatever there is tonight::

    models:
      - {name: "*", source: "/teams/*/checkpoint"}
    tasks:
      - {name: "*", dataset: {path: "/teams/*/validation.npz"}}

has one model for each folder that matches, called what the `*` stands for, and one task for each of them.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from mergecore.config import ModelConfig, StudyConfig, TaskConfig
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.registry import Registry

STAR = "*"
FINDERS = Registry("source pattern")
"""Prefixes whose sources may have a `*` or name something that moves; each entry is ``(rest, home) -> [(what the star
stands for, source)]``, sorted, where those sources mean the same for ever."""


def resolve_sources(config: StudyConfig, home: Path) -> StudyConfig:
    """The same study over the checkpoints that are there now.

    Args:
        config: of which any source may be a pattern; a task with a `*` in its name stands for one a model found.
        home: MERGECORE_HOME.

    Raises:
        InputError: a pattern matches nothing, or what was found makes no study.
    """
    models: list[ModelConfig] = []
    stars: list[str] = []
    for model in config.models:
        for star, source in _find(model.source, home):
            models.append(ModelConfig(name=model.name.replace(STAR, star), source=source))
            stars += [star] if STAR in model.name else []
    tasks = [each for task in config.tasks for each in _tasks(task, stars)]
    (base,) = (source for _, source in _find(config.base, home))
    if (base, models, tasks) == (config.base, config.models, config.tasks):
        return config
    # the whole study is judged again, now that its models are known
    found: dict[str, Any] = {"base": base, "models": [model.model_dump() for model in models]}
    found["tasks"] = [task.model_dump(mode="json") for task in tasks]
    return parse_config(config.model_dump(mode="json") | found, where="the study with what was found")


def _find(source: str, home: Path) -> list[tuple[str, str]]:
    """What the star stands for and the source, of everything that ``source`` means."""
    prefix, separator, rest = source.partition(":")
    if separator and prefix in FINDERS:
        found = FINDERS.get(prefix)(rest, home)
    elif STAR in source:
        found = _matching_paths(source)
    else:
        return [("", source)]
    if not found:
        raise InputError(f"Nothing matches the source {source!r}.")
    return found


def _matching_paths(pattern: str) -> list[tuple[str, str]]:
    before, _, after = str(Path(pattern).expanduser()).partition(STAR)
    star = re.compile(re.escape(before) + r"([^/\\*]*)" + re.escape(after))
    paths = sorted(glob.glob(f"{glob.escape(before)}{STAR}{glob.escape(after)}"))  # no hidden ones
    return [(match[1], path) for path in paths if (match := star.fullmatch(path))]


def _tasks(task: TaskConfig, stars: list[str]) -> list[TaskConfig]:
    if STAR not in task.name:
        return [task]
    content = task.model_dump(mode="json")
    return [TaskConfig.model_validate(_replaced(content, star)) for star in stars]


def _replaced(value: Any, star: str) -> Any:
    if isinstance(value, str):
        return value.replace(STAR, star)
    if isinstance(value, dict):
        return {key: _replaced(item, star) for key, item in value.items()}
    return [_replaced(item, star) for item in value] if isinstance(value, list) else value
