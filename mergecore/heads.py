"""Heads that are not merged: each task is measured with one model's own last layers on the shared body."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from mergecore.checkpoints.alignment import Head
from mergecore.checkpoints.checkpoint import write_safetensors


@dataclass(frozen=True)
class StoredHead:
    """A head on disk, where every worker finds it.

    Attributes:
        source: the checkpoint it comes from, as the user wrote it.
        file: its tensors.
        digest: content of its tensors.
        body: name in its network to the base's name of each tensor of the shared body.
        folder: folder with the config of its network, if there is one.
        classes: number of classes, where that config describes a network without this head.
    """

    source: str
    file: Path
    digest: str
    body: Mapping[str, str]
    folder: Path | None
    classes: int | None

    def state_dict(self, body: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The whole network's tensors by its own names: the shared body, named as the base names it, and the head."""
        return {name: body[key] for name, key in self.body.items() if key in body} | self.tensors()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The head's own tensors by the names of its network."""
        if not self.file.is_file():
            return {}
        with safe_open(self.file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


def store_head(folder: Path, head: Head, fingerprints: Path | None = None) -> StoredHead:
    """Write a head under its content key, unless it is there.

    Args:
        folder: where heads live.
        head: what `mergecore.checkpoints.alignment.align` set aside.
        fingerprints: cache folder of `Checkpoint.fingerprint`.
    """
    checkpoint = head.checkpoint
    digest = hashlib.sha256(json.dumps(checkpoint.fingerprint(fingerprints).total).encode()).hexdigest()
    file = folder / f"{digest}.safetensors"
    if checkpoint.tensors and not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".writing-{digest}-{os.getpid()}"
        write_safetensors(temporary, checkpoint.tensors, checkpoint.read)
        os.replace(temporary, file)
    return StoredHead(checkpoint.source, file, digest, dict(head.body), head.folder, head.classes)
