"""Networks of torchvision: ``torchvision:<name>``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mergecore.architectures.base import Architecture, create_with_classes
from mergecore.errors import InputError
from mergecore.registry import did_you_mean


class TorchvisionModel(Architecture):
    """An image classifier of torchvision with as many classes as the checkpoint's last layer."""

    def __init__(self, name: str, folder: Path | None, source: str, *, classes: int | None = None) -> None:
        import torchvision

        if name not in torchvision.models.list_models():
            raise InputError(
                f"torchvision has no model {name!r}.", did_you_mean(name, torchvision.models.list_models())
            )
        self._name, self._classes = name, classes
        self.title = f"torchvision's {name}"

    @property
    def facts(self) -> Any:
        """The name."""
        return ["torchvision", self._name]

    def build(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, dict[str, str] | None]:
        """The network as the library creates it, without pre-trained weights."""
        import torchvision

        def create(classes: int | None) -> torch.nn.Module:
            given = {} if classes is None else {"num_classes": classes}
            return torchvision.models.get_model(self._name, weights=None, **given)

        return create_with_classes(create, weights, self._classes), None
