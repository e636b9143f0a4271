"""Contenders of a comparison: rules that give scaling coefficients for a preference. They never evaluate themselves."""

from __future__ import annotations

from mergecore.registry import Registry

CONTENDERS = Registry(
    "contender",
    {
        "base": "mergecore.contenders.constant:Base",
        "soup": "mergecore.contenders.constant:Soup",
        "task_arithmetic": "mergecore.contenders.task_arithmetic:TaskArithmetic",
        "preference_weights": "mergecore.contenders.preference_weights:PreferenceWeights",
        "single": "mergecore.contenders.single:SingleModels",
    },
)
"""Each entry is a `mergecore.contenders.base.Contender`; adding one is a file and a line here."""
