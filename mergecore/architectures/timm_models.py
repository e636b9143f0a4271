"""Networks of timm: ``timm:<name>``, or a folder whose config.json names a timm architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mergecore.architectures.base import Architecture, create_with_classes
from mergecore.errors import InputError
from mergecore.files import read_json_mapping
from mergecore.registry import did_you_mean


class TimmModel(Architecture):
    """An image classifier of timm; without a stated number of classes, as many as the checkpoint's last layer has."""

    def __init__(self, name: str, folder: Path | None, source: str, *, classes: int | None = None) -> None:
        import timm

        config = read_json_mapping(folder / "config.json") if folder is not None else {}
        self._name = name or str(config.get("architecture", ""))
        if not timm.is_model(self._name):
            raise InputError(f"timm has no model {self._name!r}.", did_you_mean(self._name, timm.list_models()))
        self._classes = classes or config.get("num_classes")
        self._arguments = dict(config.get("model_args") or {})
        self.title = f"timm's {self._name}"

    @property
    def facts(self) -> Any:
        """Name and arguments."""
        return ["timm", self._name, self._arguments]

    def build(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, dict[str, str] | None]:
        """The network as the library creates it, without pre-trained weights."""
        import timm

        def create(classes: int | None) -> torch.nn.Module:
            given = self._arguments | ({} if classes is None else {"num_classes": classes})
            return timm.create_model(self._name, pretrained=False, **given)

        return create_with_classes(create, weights, self._classes), None
