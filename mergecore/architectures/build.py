"""Networks for checkpoints: built once in each worker, their parameters views of the merged buffer.

Which family builds a network follows from the config's ``architecture`` ("torchvision:resnet18"), from the checkpoint's
prefix ("open_clip:ViT-B-32/openai"), or from the files of its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from mergecore.architectures import ARCHITECTURES
from mergecore.architectures.base import Architecture
from mergecore.checkpoints.alignment import OPTIONAL_BUFFERS, Renaming, is_head_name
from mergecore.checkpoints.checkpoint import TensorInfo
from mergecore.errors import InputError
from mergecore.files import read_json_mapping

CONFIGS = ("config.json", "open_clip_config.json")


def resolve(architecture: str | None, folder: Path | None, source: str, *, classes: int | None = None) -> Architecture:
    """How the network of a checkpoint is built.

    Args:
        architecture: "family" or "family:name" as the config says; None decides by prefix and files.
        folder: folder with the checkpoint's config, if it has one.
        source: the checkpoint as the user wrote it.
        classes: number of classes of the head, where the folder's config describes a network without that head.

    Raises:
        InputError: unknown family or name, or nothing says how to build the network.
    """
    if architecture is None:
        architecture = source if source.startswith("open_clip:") else _by_files(folder, source)
    family, _, name = architecture.partition(":")
    found: Architecture = ARCHITECTURES.get(family)(name, folder, source, classes=classes)
    return found


def _by_files(folder: Path | None, source: str) -> str:
    has = {name: folder is not None and (folder / name).is_file() for name in (*CONFIGS, "model.safetensors")}
    if has["open_clip_config.json"] and not (has["config.json"] and has["model.safetensors"]):
        return "open_clip"
    if folder is None or not has["config.json"]:
        raise InputError(
            f"The base {source!r} has no config.json, so no network can be built from it.",
            "Name a model folder saved with save_pretrained, say 'architecture: timm:resnet18' (or torchvision:…, "
            "open_clip:…, python:package.module:function), or measure with the 'python' evaluator.",
        )
    return "timm" if "architecture" in read_json_mapping(folder / "config.json") else "transformers"


@torch.inference_mode(False)
def build_module(
    architecture: Architecture,
    weights: Mapping[str, torch.Tensor],
    *,
    source: str,
    device: torch.device,
    spare: bool = False,
) -> torch.nn.Module:
    """A network in evaluation mode whose parameters and buffers are the tensors in ``weights``, without a copy.

    It may be called under ``inference_mode``: the network's tensors can be used outside of it all the same.

    Args:
        architecture: what builds it.
        weights: state dict of views on ``device``, named as in the file; writing to them changes the network.
        source: what the user wrote, for messages.
        device: where the network's own buffers go.
        spare: whether parts of the checkpoint may stay unused: the base's head when another takes its place.

    Raises:
        InputError: the checkpoint does not fill the network, or holds more than it uses.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then dropped
        torch.manual_seed(0)
        module, names = architecture.build(weights)
    module.eval().requires_grad_(False)
    state = module.state_dict(keep_vars=True)
    if names is None:
        names = _match_names(state, weights)
    unused = set(weights)
    bound = set()
    for name, tensor in state.items():
        own = names.get(name)
        if own is None:
            if OPTIONAL_BUFFERS.search(name):
                continue
            raise InputError(f"The checkpoint {source!r} does not fill {name!r} of {architecture.title}.")
        unused.discard(own)
        value = weights[own]
        if not value.dtype.is_floating_point:
            continue
        if value.shape != tensor.shape:
            raise InputError(
                f"The tensor {own!r} of {source!r} has the shape {list(value.shape)}, "
                f"but {architecture.title} needs {list(tensor.shape)}."
            )
        tensor.data = value
        bound.add(id(tensor))
    left = sorted(name for name in unused if weights[name].dtype.is_floating_point)
    left = [name for name in left if not (spare or OPTIONAL_BUFFERS.search(name) or is_head_name(name))]
    if left:
        raise InputError(f"{architecture.title} has no place for {left[0]!r} of the checkpoint {source!r}.")
    for buffer in module.buffers():
        if id(buffer) not in bound:
            buffer.data = buffer.data.to(device)
    return module


def _match_names(state: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name in the network to name in the checkpoint, equal or by a prefix less or more."""
    infos, own = (
        {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        for tensors in (weights, state)
    )
    renaming = Renaming(own, infos, list(own))
    found = {name: renaming.to_base(name) for name in own}
    return {name: key for name, key in found.items() if key is not None}
