"""The quickstart's models and data: handwritten digits under transformations that contradict each other.

The 1797 images of 8x8 pixels that ship with scikit-learn are the only data. A task is one transformation of all of
them; the ten labels, the head and the split of the images are the same for every task. So one network meets an
upright 6 and a rotated 9 that look the same, and no merge can be best at both: the trade-off is in the data.

A small vision transformer is pre-trained for a moment on all tasks together (which leaves it mediocre at each), then
fine-tuned on each task alone with the head frozen. The task vectors are 3 to 4 % of the base in norm.

Shape suffixes: n images, H and W pixels.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergecore.errors import InputError
from mergecore.files import atomic_folder, atomic_write
from mergecore.registry import did_you_mean
from mergecore.training import Training, fit, repeatable

if TYPE_CHECKING:
    from transformers import ViTForImageClassification

    from mergecore.config import StudyConfig

RECIPE_VERSION = 2
"""Raise it when code changes what is trained without changing a constant."""

SPLITS = ("train", "validation", "test")
"""40, 35 and 25 % of the images: to train models, to choose coefficients (its noise limits R²), to state results."""

SHIFT = 2
Transformation = Callable[[np.ndarray], np.ndarray]


def _shift(images_nHW: np.ndarray) -> np.ndarray:
    """``SHIFT`` pixels to the right; what leaves the image is lost."""
    shifted = np.zeros_like(images_nHW)
    shifted[:, :, SHIFT:] = images_nHW[:, :, :-SHIFT]
    return shifted


TASKS: dict[str, Transformation] = {
    "upright": lambda images_nHW: images_nHW,
    "rotated": lambda images_nHW: np.rot90(images_nHW, 2, axes=(1, 2)),
    "mirrored": lambda images_nHW: images_nHW[:, :, ::-1],
    "flipped": lambda images_nHW: images_nHW[:, ::-1, :],
    "quarter_turn": lambda images_nHW: np.rot90(images_nHW, 1, axes=(1, 2)),
    "three_quarter_turn": lambda images_nHW: np.rot90(images_nHW, 3, axes=(1, 2)),
    "negative": lambda images_nHW: 1 - images_nHW,
    "shifted": _shift,
}
"""The eight tasks, in the order in which ``tasks=N`` takes them; each maps [n, H, W] in [0, 1] to the same shape.

The first four contradict one another: a half-turn, a mirror and a flip turn digits into other digits or into none.
"""

BASE = "base"


PRE_TRAINING = Training(steps=500, batch=128, learning_rate=2e-3, weight_decay=0.01)
FINE_TUNING = Training(steps=80, batch=64, learning_rate=6e-4, weight_decay=0.0)
FROZEN = "classifier."
"""Prefix of the parameters that fine-tuning leaves alone: the head is shared, as CLIP's text embeddings are."""

NETWORK: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class DigitsStudy:
    """Where everything lies.

    Attributes:
        base: model folder of the pre-trained network.
        models: task to model folder of the network fine-tuned on it, in the order asked for.
        data: task to .npz file with ``x_<split>`` and ``y_<split>`` for the splits in ``SPLITS``.
    """

    base: Path
    models: dict[str, Path]
    data: dict[str, Path]


def digits_arrays(task: str, *, seed: int) -> dict[str, np.ndarray]:
    """The images of one task, split.

    Args:
        task: a name in ``TASKS``.
        seed: of the split, stratified by digit and the same for every task: what one task tests on, no other trains on.

    Returns:
        ``x_<split>``: [n, 1, 8, 8] float32, pixels in [-1, 1] with the background at -1 (or 1 for ``negative``);
        ``y_<split>``: [n] int64, the digit; for the splits train, validation and test.

    Raises:
        InputError: unknown task.
    """
    _chosen([task])
    upright_nHW, labels = _load_digits()
    images = np.ascontiguousarray(TASKS[task](upright_nHW)[:, np.newaxis] * 2 - 1, dtype=np.float32)
    parts = split_indices(labels, seed=seed)
    return {f"x_{split}": images[parts[split]] for split in SPLITS} | {
        f"y_{split}": labels[parts[split]] for split in SPLITS
    }


@functools.cache
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [n, H, W] in [0, 1] and labels [n] int64; shared between callers, so read-only."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images_nHW, labels = digits.images / 16, digits.target.astype(np.int64)
    images_nHW.setflags(write=False)
    labels.setflags(write=False)
    return images_nHW, labels


def split_indices(labels: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Indices [n] of each split in ``SPLITS``: disjoint, complete, every label in proportion."""
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels))
    train, rest = train_test_split(everything, test_size=0.6, stratify=labels, random_state=seed)
    validation, test = train_test_split(rest, test_size=0.25 / 0.6, stratify=labels[rest], random_state=seed)
    return dict(zip(SPLITS, (train, validation, test), strict=True))


def prepare(
    home: Path,
    *,
    tasks: int | Sequence[str],
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> DigitsStudy:
    """Data, base and fine-tuned models of some tasks; trained once, then found.

    Everything lies under ``home/digits/<key>/``, where the key covers the recipe, the seed and the versions of the
    libraries. The base never depends on which tasks are asked for, so that more tasks later add models and change
    none. Weights repeat to the bit for a seed on one machine, whatever was trained before or beside them. Each
    folder appears whole or not at all: two processes may prepare the same at once (both train, one result stays).

    Args:
        home: MERGECORE_HOME.
        tasks: how many of ``TASKS``, the first ones, or their names; no names prepare the base alone.
        seed: of the split, the initial weights and the batches.
        progress: called with what is being trained and the share of the work that is done, in [0, 1].

    Raises:
        InputError: an unknown task, one named twice, more than there are, a bad seed.
    """
    names = _chosen(tasks)
    folder = _study_folder(home, seed)
    study = DigitsStudy(
        base=folder / BASE,
        models={name: folder / "models" / name for name in names},
        data={name: folder / "data" / f"{name}.npz" for name in names},
    )
    for name in names:
        data_file(f"{name}@{seed}", home)
    missing = [name for name in names if not study.models[name].is_dir()]
    pre_train = not study.base.is_dir()
    work = pre_train * PRE_TRAINING.examples + len(missing) * FINE_TUNING.examples
    done = 0

    def tick(stage: str, images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(stage, done / work)

    if pre_train:
        _pre_train(study.base, seed=seed, tick=functools.partial(tick, BASE))
    for name in missing:
        _fine_tune(study.base, study.models[name], task=name, seed=seed, tick=functools.partial(tick, name))
    if progress is not None:
        progress("ready", 1.0)
    return study


def study_config(*, tasks: int | Sequence[str] = 3, seed: int = 0) -> StudyConfig:
    """The quickstart as a config: plain MAP on the validation split, the front verified on the test split.

    Args:
        tasks: how many of ``TASKS``, the first ones, or their names; at least two.
        seed: of training, samples and front.
    """
    from mergecore.config_file import parse_config

    names = _chosen(tasks)
    suffix = f"@{seed}" if seed else ""
    return parse_config(
        {
            "name": "quickstart",
            "base": f"digits:{BASE}{suffix}",
            "models": [{"name": name, "source": f"digits:{name}{suffix}"} for name in names],
            "tasks": [
                {
                    "name": name,
                    "dataset": {"path": f"digits:{name}{suffix}", "split": "validation", "test_split": "test"},
                }
                for name in names
            ],
            "search": {"method": "map", "seed": seed},
        },
        where="the digits study",
    )


def model_folder(rest: str, home: Path) -> Path:
    """What ``digits:<rest>`` means as a checkpoint: ``base`` or a task, then ``@<seed>`` when it is not 0.

    Trains what is not there yet. An unknown name or a bad seed raises ``InputError``.
    """
    name, seed = _parse(rest, (BASE, *TASKS))
    study = prepare(home, tasks=[] if name == BASE else [name], seed=seed)
    return study.models.get(name, study.base)


def data_file(rest: str, home: Path) -> Path:
    """What ``digits:<rest>`` means as a data set: the .npz file of a task, ``@<seed>`` when the seed is not 0.

    Trains nothing. An unknown name or a bad seed raises ``InputError``.
    """
    name, seed = _parse(rest, tuple(TASKS))
    path = _study_folder(home, seed) / "data" / f"{name}.npz"
    if not path.is_file():
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **digits_arrays(name, seed=seed))
        atomic_write(path, buffer.getvalue())
    return path


def _chosen(tasks: int | Sequence[str]) -> list[str]:
    if isinstance(tasks, int):
        if not 1 <= tasks <= len(TASKS):
            raise InputError(f"There are {len(TASKS)} digit tasks, so {tasks} of them cannot be taken.")
        return list(TASKS)[:tasks]
    for name in tasks:
        if name not in TASKS:
            raise InputError(f"Unknown digit task {name!r}.", did_you_mean(name, TASKS))
    if len(set(tasks)) != len(tasks):
        raise InputError(f"A digit task is named twice: {', '.join(tasks)}.")
    return list(tasks)


def _parse(rest: str, known: Sequence[str]) -> tuple[str, int]:
    name, separator, digits = rest.partition("@")
    if name not in known:
        raise InputError(f"There is no 'digits:{name}'.", did_you_mean(name, known))
    if separator and not (digits.isascii() and digits.isdigit()):
        raise InputError(f"The seed in 'digits:{rest}' is not a whole number.", f"Write 'digits:{name}@1'.")
    return name, int(digits) if separator else 0


def _study_folder(home: Path, seed: int) -> Path:
    if not 0 <= seed < 2**32:
        raise InputError(f"The seed {seed} is not a whole number from 0 to {2**32 - 1}.")
    facts = {
        "recipe": RECIPE_VERSION,
        "tasks": list(TASKS),
        "shift": SHIFT,
        "network": NETWORK,
        "pre-training": asdict(PRE_TRAINING),
        "fine-tuning": asdict(FINE_TUNING),
        "frozen": FROZEN,
        "seed": seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "scikit-learn", "numpy")},
    }
    return home / "digits" / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _pre_train(folder: Path, *, seed: int, tick: Callable[[int], None]) -> None:
    """Train the base on the mixture of all tasks and put it at ``folder``."""
    from transformers import ViTConfig, ViTForImageClassification

    data = [digits_arrays(task, seed=seed) for task in TASKS]
    images = torch.from_numpy(np.concatenate([arrays["x_train"] for arrays in data]))
    labels = torch.from_numpy(np.concatenate([arrays["y_train"] for arrays in data]))
    with repeatable(seed):
        names = {label: str(label) for label in range(10)}
        config = ViTConfig(**NETWORK, id2label=names, label2id={name: label for label, name in names.items()})
        model = ViTForImageClassification(config)
        _train(model, images, labels, training=PRE_TRAINING, seed=seed, tick=tick)
        _save(model, folder)


def _fine_tune(base: Path, folder: Path, *, task: str, seed: int, tick: Callable[[int], None]) -> None:
    """Train the base further on one task, the head frozen, and put it at ``folder``."""
    from transformers import ViTForImageClassification

    arrays = digits_arrays(task, seed=seed)
    with repeatable(seed):
        model = ViTForImageClassification.from_pretrained(base, local_files_only=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(FROZEN))
        images, labels = torch.from_numpy(arrays["x_train"]), torch.from_numpy(arrays["y_train"])
        _train(model, images, labels, training=FINE_TUNING, seed=seed, tick=tick)
        _save(model, folder)


def _train(
    model: ViTForImageClassification,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    training: Training,
    seed: int,
    tick: Callable[[int], None],
) -> None:
    """Minimise the cross-entropy of every parameter that wants a gradient; ``tick`` gets each batch's size."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss_of(members: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(pixel_values=images[members]).logits, labels[members])

    model.train()
    fit(loss_of, parameters, len(labels), training, seed=seed, tick=tick)
    model.eval()


def _save(model: ViTForImageClassification, folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
