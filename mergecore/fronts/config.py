"""``front:`` of the config: how the front of the surrogates is found."""

from __future__ import annotations

from pydantic import Field, field_validator

from mergecore.fronts.optimise import ALGORITHMS
from mergecore.section import Section, known


class FrontConfig(Section):
    """How the Pareto front of the surrogates is found and verified."""

    algorithm: str = Field("nsga3", description=f"One of: {', '.join(ALGORITHMS)}.")
    population: int = Field(200, ge=4, le=10_000)
    generations: int = Field(300, ge=1, le=100_000)
    verify: int = Field(10, ge=0, description="How many points of the front to evaluate for real.")

    @field_validator("algorithm")
    @classmethod
    def _known_algorithm(cls, value: str) -> str:
        return known(value, ALGORITHMS)
