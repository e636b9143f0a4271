"""Class names and prompt templates of known data sets, one YAML file each.

The order of the class names is the order of the labels. ``{}`` in a template stands for the class name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from mergecore.errors import InputError
from mergecore.registry import did_you_mean

ALIASES = {"cars": "stanford_cars"}


@dataclass(frozen=True)
class PromptTable:
    """What a data set's classes are called, and the sentences they are put into."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]


@cache
def table_names() -> tuple[str, ...]:
    """Names of the tables that ship."""
    return tuple(
        sorted(file.name.removesuffix(".yaml") for file in files(__name__).iterdir() if file.name.endswith(".yaml"))
    )


@cache
def prompt_table(name: str) -> PromptTable:
    """The table of a data set, by the table's name or a hub id ("tanganke/sun397", "stanford-cars").

    Raises:
        InputError: there is none.
    """
    known = name.rpartition("/")[2].lower().replace("-", "_")
    known = ALIASES.get(known, known)
    if known not in table_names():
        raise InputError(f"There is no table of prompts for {name!r}.", did_you_mean(known, table_names()))
    content = yaml.safe_load((files(__name__) / f"{known}.yaml").read_text("utf-8"))
    return PromptTable(tuple(content["class_names"]), tuple(content["templates"]))
