"""PWE-MoE: trained routers make a network of a preference, so what is searched is the simplex of preferences.

The candidates are rays over it (Tang et al. 2024, Section 5: 11 for two tasks, 66 for three), each evaluated once; the
routers are trained before (`mergecore.pareto_moe.training`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from mergecore.errors import InputError
from mergecore.options import read_options
from mergecore.pareto_moe import ROUTERS
from mergecore.pareto_moe.rays import rays
from mergecore.pareto_moe.training_options import TrainingOptions
from mergecore.search.base import Front, SearchOptions
from mergecore.search.direct import measured_front
from mergecore.search.sampled import CountedOptions, CountedSearch

if TYPE_CHECKING:
    from mergecore.fronts.config import FrontConfig
    from mergecore.search.base import Objectives


class PweMoeOptions(CountedOptions, TrainingOptions):
    """``search:`` of the config for PWE-MoE; ``samples`` counts the rays."""

    method: Literal["pwe_moe"] = "pwe_moe"
    modules: str | list[str] = Field(
        "mlp", description="What gets a router: mlp, attn+mlp, block, all, or patterns of module names."
    )
    scaling: float = Field(
        0.3,
        ge=0,
        le=2,
        description="Task-arithmetic coefficient of the start and of what has no router; 1/N for many models.",
    )
    router: str = Field("mlp", description=f"One of: {', '.join(ROUTERS)}; the paper's is mlp.")
    router_options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> PweMoeOptions:
        from mergecore.pareto_moe.scalarisation import SCALARISATIONS

        try:
            SCALARISATIONS.get(self.scalarisation)
            cls = ROUTERS.get(self.router)
            read_options(cls.Options, self.router_options, owner=f"The router {self.router!r}", where="router_options")
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def training(self) -> TrainingOptions:
        """How routers are trained."""
        return TrainingOptions(**{name: getattr(self, name) for name in TrainingOptions.model_fields})


class PweMoeSearch(CountedSearch):
    """The front is the non-dominated part of the rays, all real; a candidate's coordinates are the T preferences."""

    Options: ClassVar[type[SearchOptions]] = PweMoeOptions
    takes_estimates: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    paper_samples: ClassVar[dict[int, int]] = {2: 11, 3: 66}

    def __init__(self, options: Any, *, models: int, objectives: Objectives) -> None:
        tasks = len(objectives.names)
        super().__init__(options.model_copy(update={"box": (0.0, 1.0)}), models=tasks, objectives=objectives)

    def default_budget(self) -> int:
        """The equal preference and the unit vectors."""
        return 1 + self.models

    def drawn(self) -> np.ndarray:
        """Rays over the simplex."""
        return rays(self.budget, self.models, seed=self.options.seed)

    def front(self, options: FrontConfig) -> Front:
        """The non-dominated evaluations; rows with a failed metric take no part."""
        return measured_front(self)
