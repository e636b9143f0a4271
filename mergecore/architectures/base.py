"""The interface of a family of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


class Architecture(ABC):
    """How the network of one checkpoint is built.

    Args:
        name: what follows the family's name in ``architecture``; may be empty.
        folder: folder with the checkpoint's config, if there is one.
        source: the checkpoint as the user wrote it.
        classes: number of classes of the head, where the config describes a network without that head.

    Raises:
        InputError: the network is unknown, or the config cannot be used.
    """

    title: str
    """What messages call the network."""

    @abstractmethod
    def __init__(self, name: str, folder: Path | None, source: str, *, classes: int | None = None) -> None: ...

    @property
    @abstractmethod
    def facts(self) -> Any:
        """What decides how weights become outputs, as JSON: part of every evaluation's key."""

    @abstractmethod
    def build(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, dict[str, str] | None]:
        """The network with any weights, and name in its state dict to name in ``weights`` (None: nearly the same)."""


def create_with_classes(
    create: Callable[[int | None], torch.nn.Module], weights: Mapping[str, torch.Tensor], classes: int | None
) -> torch.nn.Module:
    """A classifier with as many outputs as the checkpoint's last layer, where its name alone does not say how many.

    Args:
        create: makes the network with a number of classes, None for its default.
        weights: the checkpoint.
        classes: the number, when it is known.
    """
    if classes is not None:
        return create(classes)
    network = create(None)
    last, tensor = list(network.state_dict().items())[-1]
    rows = next((len(t) for name, t in weights.items() if t.ndim and f".{name}".endswith(f".{last}")), None)
    return network if rows is None or not tensor.ndim or rows == len(tensor) else create(rows)
