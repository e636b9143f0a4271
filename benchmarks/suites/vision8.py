"""vision8: a small vision transformer pre-trained on a mixture of eight sets, fine-tuned on each of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.suites.data import images, write_images
from benchmarks.suites.training import fit_aloud, fit_jointly, joint, recipe_folder, study
from mergecore.files import atomic_folder
from mergecore.training import Training, repeatable

TASKS = (
    "mnist",
    "gtsrb",
    "clothing",
    "kannada_digits",
    "cifar10",
    "notmnist",
    "sign_digits",
    "omniglot_scripts",
)
"""In the order in which 2, 3, … of them are taken."""

NETWORK: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
PRE_TRAINING = Training(steps=700, batch=256, learning_rate=1e-3, weight_decay=0.01)
FINE_TUNING = Training(steps=250, batch=64, learning_rate=5e-4)
MEAN = STD = (0.5, 0.5, 0.5)
TESTED = 600
"""Pictures of a test split."""
SEED = 0


def build(home: Path) -> dict[str, Any]:
    """Train what is not there yet, and return the study's config."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    folder = _folder(home)
    data = {task: write_images(task, folder / f"data-{TESTED}", test=TESTED) for task in TASKS}
    models = {task: folder / "models" / task for task in TASKS}
    if not (folder / "base").is_dir() or not all(place.is_dir() for place in models.values()):
        sets = {task: _tensors(task) for task in TASKS}
        with repeatable(SEED):
            body = ViTModel(ViTConfig(**NETWORK), add_pooling_layer=False)
            heads = {
                task: torch.nn.Linear(NETWORK["hidden_size"], int(labels.max()) + 1)
                for task, (_, labels) in sets.items()
            }
            parameters = [*body.parameters(), *(p for head in heads.values() for p in head.parameters())]
            _fit_jointly(body, heads, sets, parameters, PRE_TRAINING, "vision8 base")
            start = {name: tensor.clone() for name, tensor in body.state_dict().items()}
            with atomic_folder(folder / "base") as temporary:
                body.save_pretrained(temporary)
            for task, (pictures, labels) in sets.items():
                network = ViTForImageClassification(ViTConfig(**NETWORK | {"num_labels": heads[task].out_features}))
                network.vit.load_state_dict(start)
                network.classifier.load_state_dict(heads[task].state_dict())
                network.classifier.requires_grad_(False)
                _fine_tune(network, pictures, labels, task)
                with atomic_folder(models[task]) as temporary:
                    network.save_pretrained(temporary)
    tasks = {"evaluator": "image_classification", "args": {"mean": list(MEAN), "std": list(STD)}, "limit": 600}
    # nearly three for each of a surrogate's 45 parameters; the paper has 250
    return study("vision8", folder / "base", models, data, tasks=tasks, search={"method": "map", "samples": 120})


def multitask(home: Path, count: int) -> Path:
    """The body fine-tuned on the first ``count`` tasks at once, under the single models' frozen heads.

    It sees as many pictures of each task as that task's own model; trained unless it is there.
    """
    from transformers import ViTForImageClassification, ViTModel

    build(home)
    folder, tasks = _folder(home), TASKS[:count]
    place = folder / "multitask" / str(count)
    if not place.is_dir():
        sets = {task: _tensors(task) for task in tasks}
        with repeatable(SEED):
            singles = {task: ViTForImageClassification.from_pretrained(folder / "models" / task) for task in tasks}
            heads = {task: single.classifier.requires_grad_(False) for task, single in singles.items()}
            body = ViTModel.from_pretrained(folder / "base", add_pooling_layer=False)
            recipe, label = joint(FINE_TUNING, len(tasks)), f"vision8 first {count} tasks"
            _fit_jointly(body, heads, sets, list(body.parameters()), recipe, label)
            with atomic_folder(place) as temporary:
                body.save_pretrained(temporary)
    return place


def _folder(home: Path) -> Path:
    return recipe_folder(home, "vision8", NETWORK, PRE_TRAINING, FINE_TUNING, TASKS, SEED)


def _tensors(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    arrays = images(task)
    return torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2), torch.from_numpy(arrays["y_train"])


def _scaled(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures.float() / 255 - MEAN[0]) / STD[0]


def _fit_jointly(
    body: torch.nn.Module,
    heads: Mapping[str, torch.nn.Module],
    sets: dict[str, tuple[torch.Tensor, torch.Tensor]],
    parameters: list[torch.nn.Parameter],
    training: Training,
    label: str,
) -> None:
    def features_of(drawn: Mapping[str, torch.Tensor]) -> torch.Tensor:
        pictures = torch.cat([sets[task][0][members] for task, members in drawn.items()])
        features: torch.Tensor = body(pixel_values=_scaled(pictures)).last_hidden_state[:, 0]
        return features

    labels = {task: found for task, (_, found) in sets.items()}
    fit_jointly(features_of, heads, labels, parameters, training, seed=SEED, label=label)


def _fine_tune(network: torch.nn.Module, pictures: torch.Tensor, labels: torch.Tensor, task: str) -> None:
    def loss_of(members: torch.Tensor) -> torch.Tensor:
        logits = network(pixel_values=_scaled(pictures[members])).logits
        return torch.nn.functional.cross_entropy(logits, labels[members])

    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    fit_aloud(loss_of, trained, len(labels), FINE_TUNING, seed=SEED, label=f"vision8 {task}")
