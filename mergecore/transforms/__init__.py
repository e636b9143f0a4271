"""Transforms V -> V' of the task matrix, applied once when it is built."""

from __future__ import annotations

from mergecore.registry import Registry

TRANSFORMS = Registry(
    "transform",
    {
        "none": "mergecore.transforms.none:Unchanged",
        "magnitude": "mergecore.transforms.magnitude:Magnitude",
        "ties": "mergecore.transforms.ties:Ties",
        "dare": "mergecore.transforms.dare:Dare",
        "dare_ties": "mergecore.transforms.dare:DareTies",
        "breadcrumbs": "mergecore.transforms.breadcrumbs:Breadcrumbs",
        "consensus": "mergecore.transforms.consensus:Consensus",
        "tsv_m": "mergecore.transforms.tsv_m:TsvM",
    },
)
"""Each entry is a `mergecore.transforms.base.Transform`; adding one is a file and a line here."""
