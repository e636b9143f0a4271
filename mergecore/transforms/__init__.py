"""Transforms V -> V' of the task matrix; each works in place on a freshly built one."""

from __future__ import annotations

from mergecore.registry import Registry

TRANSFORMS = Registry("transform", {"none": "mergecore.transforms.none:none"})
"""Each entry is a function that changes ``matrix.deltas_MD`` in place; adding one is a file and a line here."""
