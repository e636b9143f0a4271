"""Fixtures that several test modules share: a home folder, pico checkpoints built on the fly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.suites.data import data_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A MERGECORE_HOME of the test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MERGECORE_HOME", str(folder))
    return folder


@pytest.fixture
def real_data() -> Path:
    """The folder of real data and weights, which never enter the project."""
    folder = data_folder()
    if folder is None:
        pytest.skip("real data and weights: set MERGECORE_DATA")
    return folder


def random_state(seed: int, *, dtypes: dict[str, torch.dtype] | None = None) -> dict[str, torch.Tensor]:
    """A small state dict: matrices, a vector, a scalar, an odd-sized tensor, an integer buffer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (7, 5), "layer.weight": (33, 5), "layer.bias": (33,), "scale": (), "odd": (3, 1, 2)}
    state = {
        name: torch.randn(shape, generator=generator).to((dtypes or {}).get(name, torch.float32))
        for name, shape in shapes.items()
    }
    return state | {"steps": torch.tensor([3, 4])}


@pytest.fixture
def pico_vit(tmp_path: Path) -> dict[str, str]:
    """See `make_pico_vit`."""
    return make_pico_vit(tmp_path)


def make_pico_vit(folder: Path) -> dict[str, str]:
    """A base and two fine-tuned one-layer vision transformers as hub folders, and a labelled .npz file."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = ViTForImageClassification(config)
        places = {"base": str(folder / "base")}
        base.save_pretrained(places["base"])
        state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        for index, name in enumerate(("first", "second")):
            torch.manual_seed(index + 1)
            moved = {key: tensor + 0.3 * torch.randn_like(tensor) for key, tensor in state.items()}
            base.load_state_dict(moved)
            places[name] = str(folder / name)
            base.save_pretrained(places[name])
    generator = np.random.default_rng(0)
    arrays = {}
    for split in ("validation", "test"):
        arrays[f"x_{split}"] = generator.normal(size=(40, 1, 8, 8)).astype(np.float32)
        arrays[f"y_{split}"] = generator.integers(0, 3, 40)
    np.savez(folder / "data.npz", **arrays)
    return places | {"data": str(folder / "data.npz")}


@pytest.fixture
def pico_config(pico_vit: dict[str, str]) -> dict[str, object]:
    """See `make_pico_config`."""
    return make_pico_config(pico_vit)


def make_pico_config(pico_vit: dict[str, str]) -> dict[str, object]:
    """A study of the pico models as plain YAML data, small enough for seconds."""
    dataset = {"path": pico_vit["data"], "split": "validation", "test_split": "test"}
    return {
        "name": "pico",
        "base": pico_vit["base"],
        "models": [{"name": name, "source": pico_vit[name]} for name in ("first", "second")],
        "tasks": [
            {"name": "a", "dataset": dataset},
            {"name": "b", "dataset": dataset, "metric": "cross_entropy"},
        ],
        "search": {"method": "map", "samples": 12},
        "front": {"population": 20, "generations": 10, "verify": 3},
        "execution": {"workers": 1},
    }


def rewrite(folder: str | Path, change: Callable[[dict[str, torch.Tensor]], object], name: str = "model") -> None:
    """Change the tensors of ``<name>.safetensors`` in a model folder."""
    file = Path(folder) / f"{name}.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def write_checkpoint(path: Path, state: dict[str, torch.Tensor]) -> str:
    """A .safetensors file of a state dict; returns its path."""
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return str(path)
