"""ResNet-20 for CIFAR (He et al., CVPR 2016, Section 4.2), with shortcuts that pad channels with zeros (option A)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import pad, relu


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, inputs, H, W] to [b, outputs, H / stride, W / stride]."""
        out = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        half = self.missing // 2
        shortcut = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half)) if self.missing else x
        return relu(out + shortcut)


class ResNet20(nn.Module):
    """Three stages of three blocks, 16 to 64 channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the last layer sees, [b, 64]."""
        out = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return out.mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [b, num_classes] of images [b, 3, 32, 32]."""
        return self.linear(self.features(x))


def build(num_classes: int = 10) -> nn.Module:
    """For ``architecture: python:benchmarks.suites.resnet20:build``."""
    return ResNet20(num_classes)
