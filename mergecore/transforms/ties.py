"""TIES merging (Yadav et al., "TIES-Merging: Resolving interference when merging models", NeurIPS 2023).

Convention: trimming over a whole task vector, as the authors' code does; signs elected by summed magnitude; disjoint
mean with the number of agreeing models as divisor. The columns are the models' parts of that mean, so that they sum to
the TIES task vector at c = 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from mergecore.options import PluginOptions
from mergecore.transforms.magnitude import Magnitude, MagnitudeOptions


class Ties(Magnitude):
    """Trim, elect sign, disjoint mean."""

    Options: ClassVar[type[PluginOptions]] = MagnitudeOptions
    parts: ClassVar[bool] = True

    def tensor(self, deltas: torch.Tensor, *, name: str, part: int) -> torch.Tensor:
        """Each model's part of the disjoint mean."""
        return agreeing(super().tensor(deltas, name=name, part=part))


def agreeing(deltas_NS: torch.Tensor) -> torch.Tensor:
    """Where a model has the elected sign, its value divided by the number of such models; zero elsewhere.

    The elected sign is that of the sum over models. A sum of exactly zero elects no sign, and nothing remains.
    """
    elected_S = torch.sign(deltas_NS.sum(dim=0))
    agrees_NS = deltas_NS * elected_S > 0
    count_S = agrees_NS.sum(dim=0).clamp_(min=1)
    return deltas_NS.masked_fill_(~agrees_NS, 0.0).div_(count_S)
