"""A folder like that of the real data, drawn by a generator: tiny sets, a tiny ResNet's and a tiny Llama's weights."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

WORDS = ["red", "blue", "green", "one", "two", "three", "cat", "dog", "bird"]


def write_pictures(folder: Path, name: str, *, shape: tuple[int, ...], classes: int, seed: int) -> None:
    """60 training and 24 test pictures whose brightness tells the class."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 60), ("test", 24)):
        labels = np.arange(count) % classes
        bright = (labels * 200 // classes).reshape(-1, *(1,) * len(shape))
        arrays[f"x_{split}"] = (bright + generator.integers(0, 50, (count, *shape))).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    (folder / "vision" / name).mkdir(parents=True)
    np.savez(folder / "vision" / name / f"{name}.npz", allow_pickle=False, **arrays)


def write_texts(folder: Path, kind: str, name: str, *, classes: int, seed: int) -> None:
    """40 training and 12 test texts whose first word tells the class."""
    generator = np.random.default_rng(seed)
    lines = []
    for split, count in (("train", 40), ("test", 12)):
        for number in range(count):
            text = " ".join([WORDS[number % classes], *generator.choice(WORDS, 12)])
            lines.append(json.dumps({"text": text, "label": number % classes, "split": split}))
    (folder / kind / name).mkdir(parents=True)
    with gzip.open(folder / kind / name / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


@pytest.fixture
def synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder that MERGECORE_DATA names."""
    folder = tmp_path / "data"
    (folder / "vision").mkdir(parents=True)
    monkeypatch.setenv("MERGECORE_DATA", str(folder))
    return folder


def write_resnet(folder: Path) -> None:
    """Random weights where the published ones lie."""
    import torch

    from benchmarks.suites.resnet20 import ResNet20

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = ResNet20(10).state_dict()
    place = folder / "weights" / "cifar10_resnet20"
    place.mkdir(parents=True)
    kept = {name: tensor.numpy() for name, tensor in state.items() if tensor.is_floating_point()}
    np.savez(place / "cifar10_resnet20.npz", allow_pickle=False, **kept)


def write_tiny_llama(folder: Path) -> None:
    """llama2.c's two files, with random weights: width 8, one layer, a token for each byte and letter."""
    letters = [chr(code).encode() for code in range(ord("a"), ord("z") + 1)] + [b" "]
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256)), *letters]
    place = folder / "weights" / "aidreams260K"
    place.mkdir(parents=True)
    packed = b"".join(struct.pack("<fi", 0.0, len(token)) + token for token in tokens)
    (place / "tok512.bin").write_bytes(struct.pack("<i", max(map(len, tokens))) + packed)
    width, hidden, layers, heads, positions = 8, 16, 1, 2, 128
    shapes = {
        "tok_embeddings": (len(tokens), width),
        "rms_att": (layers, width),
        "wq": (layers, width, width),
        "wk": (layers, width, width),
        "wv": (layers, width, width),
        "wo": (layers, width, width),
        "rms_ffn": (layers, width),
        "w1": (layers, hidden, width),
        "w2": (layers, width, hidden),
        "w3": (layers, hidden, width),
        "rms_final": (width,),
    }
    generator = np.random.default_rng(0)
    arrays = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    facts = np.array([width, hidden, layers, heads, heads, len(tokens), positions])
    np.savez(
        place / "aidreams260K.npz", allow_pickle=False, config_dim_hidden_layers_heads_kv_vocab_seq=facts, **arrays
    )
