"""Families of networks that checkpoints belong to."""

from __future__ import annotations

from mergecore.registry import Registry

ARCHITECTURES = Registry(
    "architecture",
    {
        "transformers": "mergecore.architectures.hub_transformers:TransformersModel",
        "open_clip": "mergecore.architectures.open_clip_models:OpenClipModel",
        "timm": "mergecore.architectures.timm_models:TimmModel",
        "torchvision": "mergecore.architectures.torchvision_models:TorchvisionModel",
        "python": "mergecore.architectures.python_callable:PythonModel",
    },
)
"""Each entry is a `mergecore.architectures.base.Architecture`; adding a family is a file and a line here."""
