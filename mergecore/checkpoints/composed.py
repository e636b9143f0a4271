"""Checkpoints put together from tensors of others, under other names, read on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mergecore.checkpoints.checkpoint import Checkpoint, Fingerprint, LowRankUpdate, TensorInfo


@dataclass(frozen=True)
class Place:
    """Where a tensor is read: a tensor of a checkpoint, its rows beyond the model's own taken from the base."""

    checkpoint: Checkpoint
    name: str
    padding: tuple[Checkpoint, str] | None = None

    @property
    def info(self) -> TensorInfo:
        if self.padding is None:
            return self.checkpoint.tensors[self.name]
        base, name = self.padding
        return TensorInfo(base.tensors[name].shape, self.checkpoint.tensors[self.name].dtype)

    def read(self) -> torch.Tensor:
        tensor = self.checkpoint.read(self.name)
        if self.padding is None:
            return tensor
        rows = self.padding[0].read(self.padding[1]).to(tensor.dtype)
        common = min(len(tensor), len(rows))
        return torch.cat([tensor[:common], rows[common:]])

    def digest(self, cache: Path | None) -> str:
        own = self.checkpoint.fingerprint(cache).tensors[self.name]
        if self.padding is None:
            return own
        base, name = self.padding
        return hashlib.sha256(f"{own} padded by {base.fingerprint(cache).tensors[name]}".encode()).hexdigest()


@dataclass
class ComposedCheckpoint(Checkpoint):
    """A checkpoint put together from tensors of others, under new names; values are still read on demand."""

    _places: dict[str, Place] = field(repr=False, default_factory=dict)

    def _digest_all(self, cache: Path | None) -> Fingerprint:
        tensors = {name: place.digest(cache) for name, place in self._places.items()}
        for name, update in self.updates.items():
            tensors[name] = hashlib.sha256(f"{tensors[name]} + {update.digest(cache)}".encode()).hexdigest()
        total = hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()
        return Fingerprint(total, tensors)


def compose(
    source: str,
    places: Mapping[str, Place],
    *,
    folder: Path | None = None,
    updates: Mapping[str, LowRankUpdate] | None = None,
) -> ComposedCheckpoint:
    """A checkpoint over ``places``: name to where the tensor is read."""
    readers: dict[str, Callable[[str], torch.Tensor]] = {name: _reader(place) for name, place in places.items()}
    tensors = {name: place.info for name, place in places.items()}
    return ComposedCheckpoint(
        source, tensors, readers, folder=folder, updates=dict(updates or {}), _places=dict(places)
    )


def _reader(place: Place) -> Callable[[str], torch.Tensor]:
    return lambda _: place.read()
