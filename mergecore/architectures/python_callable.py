"""A network of the user's own: ``python:package.module:function``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mergecore.architectures.base import Architecture, create_with_classes
from mergecore.callables import import_callable, source_digest
from mergecore.errors import InputError


class PythonModel(Architecture):
    """What the function returns. One that takes ``num_classes`` is told as many as the checkpoint's last layer has."""

    def __init__(self, name: str, folder: Path | None, source: str, *, classes: int | None = None) -> None:
        self._function: Callable[..., Any] = import_callable(name, what="The architecture")
        self._name, self._classes = name, classes
        self.title = f"the network of {name!r}"

    @property
    def facts(self) -> Any:
        """The address and the source of the function's module."""
        return ["python", self._name, source_digest(self._function)]

    def build(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, dict[str, str] | None]:
        """Call the function."""
        if "num_classes" not in inspect.signature(self._function).parameters:
            return self._create(None), None
        return create_with_classes(self._create, weights, self._classes), None

    def _create(self, classes: int | None) -> torch.nn.Module:
        module = self._function(**({} if classes is None else {"num_classes": classes}))
        if not isinstance(module, torch.nn.Module):
            raise InputError(f"{self._name!r} returned {type(module).__name__}, not a torch module.")
        return module
