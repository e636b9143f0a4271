"""The interface of transforms, and the one loop over tensors that they all share.

Shape suffixes: N models with differences in full, S elements of one tensor or of a part of it.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mergecore.errors import InputError
from mergecore.options import PluginOptions, read_options

if TYPE_CHECKING:
    from mergecore.task_matrix import TaskMatrix

PART = 1 << 16
"""Elements of each model that an elementwise transform is given at a time: they stay in the second-level cache."""


class Transform(ABC):
    """V -> V', tensor by tensor; columns stay columns, so coefficients keep their meaning.

    Class attributes:
        Options: what ``merge.options`` may say.
        elementwise: whether parts of a tensor can be treated one after the other.
        keeps_low_rank: whether adapters stay factors; otherwise their products are stored in full.
        separate: whether what becomes of a column depends on nothing but that column's model and the base.
        parts: whether columns are parts of one merge, which all ones give, rather than models of their own.
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    elementwise: ClassVar[bool] = True
    keeps_low_rank: ClassVar[bool] = False
    separate: ClassVar[bool] = False
    parts: ClassVar[bool] = False

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    def scales(cls) -> tuple[float, ...]:
        """Common factors of the columns that are worth trying; comparisons look no further than the largest.

        Parts sum to a task vector about as long as a single model's, so for them they are twice as large.
        """
        return tuple(step / (5 if cls.parts else 10) for step in range(1, 11))

    def prepare(self, matrix: TaskMatrix) -> None:  # noqa: B027
        """Look at the whole task matrix before any tensor is changed."""

    @abstractmethod
    def tensor(self, deltas: torch.Tensor, *, name: str, part: int) -> torch.Tensor:
        """The transformed differences of one tensor.

        Args:
            deltas: float32, [N, S] of one part of a tensor if ``elementwise``, otherwise [N, ...] in its own shape.
            name: the tensor's name.
            part: number of the part; the parts of a tensor come in order.

        Returns:
            The same shape; ``deltas`` may be overwritten.
        """


def transform_options(cls: type[Transform], given: Mapping[str, Any], name: str) -> PluginOptions:
    """Check ``merge.options``; a fault becomes one sentence."""
    return read_options(cls.Options, given, owner=f"The transform {name!r}", where="merge.options")


def apply(transform: Transform, matrix: TaskMatrix, progress: Callable[[int, int], None] | None = None) -> None:
    """Change the differences of a writable task matrix in place, one tensor, or part of one, in memory at a time.

    Raises:
        InputError: a transformed difference is too large for the format of the task matrix.
    """
    transform.prepare(matrix)
    entries = [entry for entry in matrix.layout.entries if entry.dense]
    with torch.inference_mode():
        for done, entry in enumerate(entries):
            stored_NS = matrix.deltas_MD[:, entry.offset : entry.offset + entry.size]
            step = PART if transform.elementwise else entry.size
            for part, start in enumerate(range(0, entry.size, step)):
                piece_NS = stored_NS[:, start : start + step]
                deltas = piece_NS.to(torch.float32, copy=True)
                if not transform.elementwise:
                    deltas = deltas.view(len(deltas), *entry.shape)
                piece_NS.copy_(transform.tensor(deltas, name=entry.name, part=part).reshape(piece_NS.shape))
                if not all(map(math.isfinite, torch.aminmax(piece_NS))):
                    raise InputError(
                        f"The transformed tensor {entry.name!r} is too large for "
                        f"{str(piece_NS.dtype).removeprefix('torch.')}."
                    )
            if progress:
                progress(done + 1, len(entries))


def generator(seed: int, *names: object) -> torch.Generator:
    """Random numbers that depend on a seed and on what they are for, not on the order of the work."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
