"""SLERP (Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985): two models along the arc between them.

Convention: tensor by tensor, over the weights themselves (not over task vectors), each flattened to a vector; the angle
is that between them, the arc's ends keep their lengths. Two almost parallel tensors are interpolated in a straight
line, as mergekit does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from mergecore.errors import InputError
from mergecore.merging.base import Merge
from mergecore.options import PluginOptions

if TYPE_CHECKING:
    from mergecore.study import Study

PARALLEL = 0.9995
"""Cosine from which on the arc is a straight line."""


class SlerpOptions(PluginOptions):
    """Options of SLERP."""

    t: float = Field(0.5, ge=0, le=1, description="How far from the first model to the second.")


class Slerp(Merge):
    """The point at ``t`` on the arc from the first model to the second."""

    Options: ClassVar[type[PluginOptions]] = SlerpOptions

    def check(self, study: Study) -> None:
        """There are two models."""
        if len(study.models) != 2:
            raise InputError(f"SLERP merges two models, not {len(study.models)}.")

    def tensor(self, deltas: torch.Tensor, base: torch.Tensor, *, name: str) -> torch.Tensor:
        """The merged tensor, less the base."""
        first, second = (base.double() + delta.double() for delta in deltas)
        return (slerp(first, second, self.options.t) - base).float()


def slerp(first: torch.Tensor, second: torch.Tensor, t: float) -> torch.Tensor:
    """Spherical interpolation of two tensors of one shape; linear where they are almost parallel or one is zero."""
    lengths = first.norm() * second.norm()
    cosine = float((first * second).sum() / lengths) if lengths > 0 else 1.0
    if abs(cosine) > PARALLEL:
        return torch.lerp(first, second, t)
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    ends = torch.sin((1 - t) * angle), torch.sin(t * angle)
    return (ends[0] * first + ends[1] * second) / torch.sin(angle)
