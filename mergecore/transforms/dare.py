"""DARE (Yu et al., "Language models are super Mario", ICML 2024): drop elements at random, rescale the rest."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from mergecore.options import PluginOptions
from mergecore.transforms.base import Transform, generator
from mergecore.transforms.ties import agreeing


class DareOptions(PluginOptions):
    """Options of DARE."""

    drop: float = Field(0.8, ge=0, lt=1, description="Probability that an element of a task vector is dropped.")
    seed: int = Field(0, ge=0)


class Dare(Transform):
    """Keep each element with probability 1 - drop and divide it by that, so that its expectation stays."""

    Options: ClassVar[type[PluginOptions]] = DareOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._draws: list[torch.Generator] = []

    def tensor(self, deltas: torch.Tensor, *, name: str, part: int) -> torch.Tensor:
        """The same elements are dropped whatever the number of models or the order of the tensors."""
        if part == 0:
            self._draws = [generator(self.options.seed, n, name, part) for n in range(len(deltas))]
        drop = self.options.drop
        for delta_S, draws in zip(deltas, self._draws, strict=True):
            draw_S = torch.rand(delta_S.shape, generator=draws)
            delta_S.masked_fill_(draw_S < drop, 0.0).div_(1 - drop)
        return deltas


class DareTies(Dare):
    """DARE in the place of the trimming of TIES, then elected signs and the disjoint mean."""

    parts: ClassVar[bool] = True

    def tensor(self, deltas: torch.Tensor, *, name: str, part: int) -> torch.Tensor:
        """Each model's part of the disjoint mean."""
        return agreeing(super().tensor(deltas, name=name, part=part))
