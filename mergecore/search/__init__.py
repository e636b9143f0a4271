"""Search methods: what to evaluate next, and the front from what was evaluated. They never evaluate themselves."""

from __future__ import annotations

from mergecore.registry import Registry
from mergecore.search.base import Front, Objectives, Search, SearchOptions

SEARCHES = Registry(
    "search method",
    {
        "map": "mergecore.search.map:MapSearch",
        "bayesian_map": "mergecore.search.bayesian_map:BayesianMapSearch",
        "nested_map": "mergecore.search.nested_map:NestedMapSearch",
        "direct": "mergecore.search.direct:DirectSearch",
        "pwe_moe": "mergecore.search.pwe_moe:PweMoeSearch",
    },
)
"""Each entry is a subclass of `Search` with its ``Options``; adding one is a file and a line here."""

__all__ = ["SEARCHES", "Front", "Objectives", "Search", "SearchOptions"]
