"""resnet3: a real ResNet-20, trained on CIFAR-10 by its authors, fine-tuned on three sets.

The heads are linear probes of the base's features and stay frozen. After each merge the batch-norm statistics are
estimated again on training images, as the MAP paper does for its ResNets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.suites.data import data_folder, images, write_images
from benchmarks.suites.resnet20 import ResNet20
from benchmarks.suites.training import fit_aloud, linear_probe, recipe_folder, study
from mergecore.training import Training, repeatable

TASKS = ("gtsrb", "clothing", "sign_digits")
FINE_TUNING = Training(steps=160, batch=64, learning_rate=1e-3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED = 0


def build(home: Path) -> dict[str, Any]:
    """Train what is not there yet, and return the study's config."""
    folder = recipe_folder(home, "resnet3", FINE_TUNING, TASKS, SEED)
    data = {task: write_images(task, folder / "data") for task in TASKS}
    models = {task: folder / f"{task}.safetensors" for task in TASKS}
    base = folder / "base.safetensors"
    if not all(file.is_file() for file in (base, *models.values())):
        start = _published()
        for task in TASKS:
            if not models[task].is_file():
                with repeatable(SEED):
                    network = _fine_tune(start, task)
                _save(network.state_dict(), models[task])
        _save(start, base)
    args = {"mean": list(MEAN), "std": list(STD), "batch_norm": {"split": "train", "examples": 512, "batch_size": 128}}
    tasks = {"evaluator": "image_classification", "args": args, "limit": 300}
    architecture = "python:benchmarks.suites.resnet20:build"
    return study("resnet3", base, models, data, tasks=tasks, architecture=architecture)


def _published() -> dict[str, torch.Tensor]:
    folder = data_folder()
    assert folder is not None
    with np.load(folder / "weights" / "cifar10_resnet20" / "cifar10_resnet20.npz", allow_pickle=False) as archive:
        return {name: torch.from_numpy(array) for name, array in archive.items()}


def _fine_tune(start: dict[str, torch.Tensor], task: str) -> torch.nn.Module:
    arrays = images(task)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    pictures = (torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2).float() / 255 - mean) / std
    labels = torch.from_numpy(arrays["y_train"])
    classes = int(labels.max()) + 1
    network = ResNet20(classes)
    body = {name: tensor for name, tensor in start.items() if not name.startswith("linear.")}
    network.load_state_dict(body, strict=False)
    network.eval()
    with torch.no_grad():
        features = torch.cat([network.features(part) for part in pictures[:2000].split(250)])
    network.linear = linear_probe(features, labels[:2000], classes)
    network.train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    fit_aloud(
        lambda members: torch.nn.functional.cross_entropy(network(pictures[members]), labels[members]),
        trained,
        len(labels),
        FINE_TUNING,
        seed=SEED,
        label=f"resnet3 {task}",
    )
    return network.eval()


def _save(state: dict[str, torch.Tensor], file: Path) -> None:
    kept = {name: tensor.contiguous() for name, tensor in state.items() if tensor.dtype.is_floating_point}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".writing")
    save_file(kept, temporary)
    temporary.replace(file)
