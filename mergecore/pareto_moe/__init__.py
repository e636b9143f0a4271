"""PWE-MoE (Tang et al. 2024, "Towards Efficient Pareto Set Approximation via Mixture of Experts Based Model Fusion").

Routers, one for each up-scaled module, turn a preference vector into that module's scaling coefficients. They are all
that is trained, so one training learns the whole Pareto set; unloaded at a preference, the network is an ordinary one.

Shape suffixes in this package: T tasks, N models, G modules with a router, M preferences of one step.
"""

from __future__ import annotations

from mergecore.registry import Registry

ROUTERS = Registry(
    "router",
    {
        "mlp": "mergecore.pareto_moe.routers:TwoLayers",
        "linear": "mergecore.pareto_moe.routers:Linear",
        "softmax": "mergecore.pareto_moe.routers:Softmax",
        "fourier": "mergecore.pareto_moe.routers:Fourier",
    },
)
"""Each entry is a `mergecore.pareto_moe.routers.Router`; adding one is a class and a line here."""
