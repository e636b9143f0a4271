"""The flows: each reads like its paper's algorithm. `FLOWS` finds the one for a search method."""

from __future__ import annotations

from mergecore.registry import Registry

FLOWS = Registry(
    "flow",
    {
        "map": "flows.map:map_flow",
        "bayesian_map": "flows.bayesian_map:bayesian_map_flow",
        "nested_map": "flows.nested_map:nested_map_flow",
        "direct": "flows.direct:direct_flow",
        "pwe_moe": "flows.pareto_moe:pareto_moe_flow",
    },
)
"""Search method to flow."""
