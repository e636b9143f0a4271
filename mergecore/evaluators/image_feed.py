"""Batches of a task's images where they are needed; on a GPU the bytes stay there between candidates."""

from __future__ import annotations

import numpy as np
import torch

from mergecore.data.images import Images
from mergecore.evaluators.batching import Batcher, BatchSize

SHARE = 0.04
"""Of a GPU's free memory that one task's images may take: to read them again for each candidate takes longer than the
forward passes of a small network."""


class ImageFeed:
    """Images of one data set on one device.

    Args:
        images: as stored.
        device: where batches go.
        batch_size: of `batcher`.

    Attributes:
        batcher: cuts them into batches; remembers what fits.
    """

    def __init__(self, images: Images, device: torch.device, batch_size: BatchSize) -> None:
        self._images, self._device = images, device
        self._held = _on_device(images.x, device) if _fits(images.x, device) else None
        example_bytes = 4 * int(np.prod(images.x.shape[1:]))
        self.batcher = Batcher(batch_size, example_bytes=example_bytes, device=device)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice | np.ndarray) -> torch.Tensor:
        """The images of a range, or of row numbers: float32 [b, C, H, W], normalised."""
        if self._held is None:
            return self._images.normalised(_on_device(self._images.x[rows], self._device))
        chosen = rows if isinstance(rows, slice) else torch.from_numpy(rows)
        return self._images.normalised(self._held[chosen])


def _on_device(stored: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(stored)).to(device)  # bytes travel, a quarter of the floats


def _fits(stored: np.ndarray, device: torch.device) -> bool:
    return device.type == "cuda" and stored.nbytes < SHARE * torch.cuda.mem_get_info(device)[0]
