"""What all parts of a config share: unknown keys are errors, names are data."""

from __future__ import annotations

import unicodedata

from pydantic import BaseModel, ConfigDict

from mergecore.registry import Registry, did_you_mean


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values are never coerced from other kinds."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


def checked_name(name: str) -> str:
    """A model's, task's or study's name: any printable text that cannot be taken for a path."""
    if not name.strip():
        raise ValueError("a name must not be empty")
    if any(unicodedata.category(character).startswith("C") and character != "\u200d" for character in name):
        raise ValueError(f"the name {name!r} contains control characters")
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        raise ValueError(
            f"the name {name!r} looks like a path: names must not contain '/' or '\\' or start with '.' or '~'"
        )
    return name


def known(name: str, registry: Registry) -> str:
    """``name`` if it is registered; otherwise a ``ValueError`` with the nearest name."""
    if name not in registry:
        raise ValueError(f"unknown {registry.kind} {name!r}. {did_you_mean(name, registry)}")
    return name
