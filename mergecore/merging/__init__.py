"""Merges that make one task vector out of N, and not by adding them up."""

from __future__ import annotations

from mergecore.registry import Registry

MERGES = Registry(
    "merge",
    {
        "slerp": "mergecore.merging.slerp:Slerp",
        "fisher": "mergecore.merging.fisher:Fisher",
        "regmean": "mergecore.merging.regmean:RegMean",
        "adamerging_task": "mergecore.merging.adamerging:TaskWise",
        "adamerging_layer": "mergecore.merging.adamerging:LayerWise",
        "iso_c": "mergecore.merging.iso:IsoC",
        "iso_cts": "mergecore.merging.iso:IsoCts",
        "ls": "mergecore.merging.fine_tuned:LinearScalarisation",
        "epo": "mergecore.merging.fine_tuned:ExactPareto",
        "mgda": "mergecore.merging.fine_tuned:MinNorm",
    },
)
"""Each entry is a `mergecore.merging.base.Merge`; adding one is a file and a line here."""
