"""Pico ResNets of three libraries."""

from __future__ import annotations

import numpy as np
import torch

from mergecore.evaluators.base import Candidate


def resnet(library: str) -> torch.nn.Module:
    """A pico ResNet for three classes with the statistics of noise, whose predictions differ by image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = blank_resnet(library)
        torch.optim.swa_utils.update_bn([torch.randn(32, 3, 32, 32) + 1], module)
    return module.eval()


def blank_resnet(library: str) -> torch.nn.Module:
    if library == "timm":
        import timm

        return timm.create_model("resnet18", layers=(1, 1, 1, 1), channels=(4, 4, 8, 8), num_classes=3)
    if library == "torchvision":
        from torchvision.models.resnet import BasicBlock, ResNet

        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 2], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**shape, num_labels=3))


def candidate(module: torch.nn.Module, **changes: str) -> Candidate:
    """The module as a candidate whose weights are its own tensors."""
    return Candidate(np.zeros(2), module.state_dict(keep_vars=True), lambda: module, **changes)
