"""A real CIFAR-10 ResNet: what a merge does to its statistics and its head is mended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.suites.resnet20 import ResNet20
from mergecore.config import TaskConfig
from mergecore.evaluators.base import Context
from mergecore.evaluators.image_classification import ImageClassification
from tests.mergecore.evaluators.pico_resnet import candidate

pytestmark = pytest.mark.data


@pytest.fixture
def network(real_data: Path) -> ResNet20:
    with np.load(real_data / "weights" / "cifar10_resnet20" / "cifar10_resnet20.npz") as arrays:
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    module = ResNet20(10)
    missing = module.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    return module.eval()


def accuracy(module: torch.nn.Module, real_data: Path, home: Path, **args: Any) -> float:
    given = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], **args}
    path = str(real_data / "vision" / "cifar10" / "cifar10.npz")
    task = TaskConfig.model_validate({"name": "t", "dataset": {"path": path, "split": "test"}, "args": given})
    return ImageClassification(task, task.dataset, Context(home)).evaluate(candidate(module)).metrics["accuracy"]


def test_statistics_and_head_are_mended(network: ResNet20, real_data: Path, home: Path) -> None:
    intact = accuracy(network, real_data, home)
    assert intact == pytest.approx(0.801, abs=0.002)  # counted before by another implementation
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(4)
        network.linear.weight.copy_(network.linear.weight.flip(0))
    assert accuracy(network, real_data, home) < 0.3
    norm = {"batch_norm": {"examples": 512}}
    assert accuracy(network, real_data, home, **norm) < 0.3
    for method in ("closed_form", "logistic"):
        assert (
            accuracy(network, real_data, home, **norm, refit_head={"examples": 1024, "method": method}) > intact - 0.06
        )
