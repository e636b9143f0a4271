"""Acquisitions: where to evaluate next, from what was evaluated (Bayesian MAP, MAP, Appendix E.3)."""

from __future__ import annotations

from mergecore.registry import Registry

ACQUISITIONS = Registry(
    "acquisition",
    {
        "angular_bins": "mergecore.acquisitions.angular_bins:AngularBins",
        "front": "mergecore.acquisitions.front:FrontPoints",
        "hypervolume": "mergecore.acquisitions.hypervolume:ExpectedHypervolume",
    },
)
"""Each entry is a `mergecore.acquisitions.base.Acquisition`; adding one is a file and a line here."""
