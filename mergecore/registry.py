"""The one registry of plug-ins: search methods, transforms, evaluators, sources."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from mergecore.errors import InputError, MergecoreError


class Registry:
    """Names to plug-ins, imported on first use.

    An entry is the address ``"package.module:attribute"``, so that listing names costs no import and a new plug-in
    is one new file plus one line in the table of its kind.

    Args:
        kind: what the entries are, for messages ("search method").
        entries: name to address.
    """

    def __init__(self, kind: str, entries: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, str] = {}
        for name, address in (entries or {}).items():
            self.add(name, address)

    def add(self, name: str, address: str) -> None:
        """Register ``address`` under ``name``; a name that is taken raises ``MergecoreError``."""
        if name in self._entries:
            raise MergecoreError(f"The {self.kind} {name!r} is registered twice.")
        if address.count(":") != 1:
            raise MergecoreError(f"The address {address!r} of the {self.kind} {name!r} is not 'package.module:name'.")
        self._entries[name] = address

    def get(self, name: str) -> Any:
        """Import and return the plug-in called ``name``; an unknown name raises ``InputError`` with the nearest one."""
        if name not in self._entries:
            raise InputError(f"Unknown {self.kind} {name!r}.", did_you_mean(name, self._entries))
        module, attribute = self._entries[name].split(":")
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """One sentence that names the nearest of ``known``, or lists them all when none is near."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(sorted(choices))}." if choices else ""
