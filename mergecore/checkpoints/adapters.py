"""PEFT LoRA adapters as low-rank task vectors: what each pair of factors changes, and by how much.

LoRA (Hu et al., ICLR 2022) adds scale · B A to a weight. The product is never formed here: `Adapter.update` gives the
factors for a tensor of the base, and the task matrix stores them.

Read: any rank for each module (``rank_pattern``, ``alpha_pattern``), rank-stabilised scaling, transposed weights
(``fan_in_fan_out``), embeddings, convolutions, biases and ``modules_to_save``. Refused: what is no sum of the base and
a product (DoRA), and other adapter types.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergecore.checkpoints.checkpoint import ADAPTER_CONFIG, Checkpoint, LowRankUpdate, TensorInfo
from mergecore.errors import InputError

PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.[\w-]+)?(\.weight)?$")
PLAIN_STARTS = ("true", "false", "gaussian", "orthogonal", "eva")
"""Initialisations that leave the base as it is; the others (PiSSA, OLoRA, …) subtract something from it."""
MERGE = "Merge it into its base with peft's merge_and_unload, save that, and name the folder."


@dataclass(frozen=True)
class _Pair:
    """Names and shapes of the two factors of one module: A [r, in], B [out, r]."""

    a: str
    b: str
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """An opened adapter, its names freed of PEFT's prefixes.

    Attributes:
        checkpoint: the adapter's file.
        config: adapter_config.json.
        pairs: weight name in the adapted network to its factors.
        full: tensor name in the adapted network to its name in the file: biases and modules saved whole.
    """

    checkpoint: Checkpoint
    config: Mapping[str, Any]
    pairs: Mapping[str, _Pair]
    full: Mapping[str, str]

    def update(self, name: str, base: TensorInfo) -> LowRankUpdate:
        """The change of the weight ``name``.

        Raises:
            InputError: the factors do not fit the base's tensor.
        """
        pair, infos = self.pairs[name], self.checkpoint.tensors
        rank, inputs = infos[pair.a].shape[0], math.prod(infos[pair.a].shape[1:])
        outputs = infos[pair.b].shape[0]
        rows, cols = base.shape[0], math.prod(base.shape[1:])
        transposed = self._transposed(pair, (outputs, inputs), (rows, cols))
        if (rows, cols) != ((inputs, outputs) if transposed else (outputs, inputs)):
            raise InputError(
                f"The adapter {self.checkpoint.source!r} changes {name!r} by a [{outputs}, {inputs}] matrix, "
                f"but that tensor of the base has the shape {list(base.shape)}.",
                f"It was trained on {self.config.get('base_model_name_or_path')!r}.",
            )
        scale = self._scale(name.removesuffix(".weight"), rank)

        def read(factor: str, flip: bool) -> torch.Tensor:
            tensor = self.checkpoint.read(factor).flatten(1)
            return tensor.T.contiguous() if flip else tensor

        def digest(cache: Path | None) -> str:
            prints = self.checkpoint.fingerprint(cache).tensors
            facts = [prints[pair.a], prints[pair.b], scale.hex(), transposed]
            return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

        left, right = (pair.a, pair.b) if transposed else (pair.b, pair.a)
        return LowRankUpdate(
            left=lambda: read(left, transposed),
            right=lambda: read(right, transposed),
            scale=scale,
            rank=rank,
            dtype=infos[pair.a].dtype,
            digest=digest,
        )

    def _transposed(self, pair: _Pair, factors: tuple[int, int], base: tuple[int, int]) -> bool:
        """Whether the weight is stored [in, out]: by shape where it tells, else as the config says."""
        if pair.embedding:
            return True
        if factors != factors[::-1] and base in (factors, factors[::-1]):
            return base == factors[::-1]
        return bool(self.config.get("fan_in_fan_out"))

    def _scale(self, module: str, rank: int) -> float:
        patterns = self.config.get("alpha_pattern") or {}
        matching = (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))
        alpha = float(patterns.get(next(matching, ""), self.config.get("lora_alpha", rank)))
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank


def read_adapter(checkpoint: Checkpoint) -> Adapter:
    """Understand the names and the config of an adapter that `mergecore.checkpoints.checkpoint.open_checkpoint` opened.

    Raises:
        InputError: not LoRA, DoRA, a base that the adapter's initialisation changed, or a factor without its partner.
    """
    assert checkpoint.folder is not None  # or it would be no adapter
    config = _read_config(checkpoint.folder / ADAPTER_CONFIG)
    _refuse_other_kinds(checkpoint, config)
    sides: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    full: dict[str, str] = {}
    for raw in checkpoint.tensors:
        name = raw.removeprefix(PREFIX).replace(".base_layer.", ".")
        factor = FACTOR.fullmatch(name)
        if factor is not None:
            target = f"{factor['module']}.weight"
            sides.setdefault(target, {})[factor["side"]] = raw
            if factor["embedding"]:
                embeddings.add(target)
        elif "lora_magnitude_vector" in name:
            raise InputError(
                f"The adapter {checkpoint.source!r} is a DoRA adapter, which is no low-rank update.", MERGE
            )
        elif ".original_module." not in name:
            full[re.sub(r"\.modules_to_save(\.default)?\.", ".", name)] = raw
    for target, found in sides.items():
        if len(found) != 2:
            raise InputError(f"The adapter {checkpoint.source!r} has only one of the two factors of {target!r}.")
        ranks = checkpoint.tensors[found["A"]].shape[0], checkpoint.tensors[found["B"]].shape[1]
        if ranks[0] != ranks[1]:
            raise InputError(f"The factors of {target!r} in the adapter {checkpoint.source!r} differ in rank: {ranks}.")
    pairs = {target: _Pair(found["A"], found["B"], target in embeddings) for target, found in sides.items()}
    if not pairs and not full:
        raise InputError(f"The adapter {checkpoint.source!r} holds no LoRA factors.")
    return Adapter(checkpoint, config, pairs, full)


def _refuse_other_kinds(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise InputError(
            f"The adapter {checkpoint.source!r} is of the type {kind}; only LORA can stay low-rank.", MERGE
        )
    if config.get("use_dora"):
        raise InputError(f"The adapter {checkpoint.source!r} is a DoRA adapter, which is no low-rank update.", MERGE)
    start = str(config.get("init_lora_weights", True)).lower()
    if not start.startswith(PLAIN_STARTS):
        raise InputError(
            f"The adapter {checkpoint.source!r} was started with {start!r}, which changes the base it belongs to.",
            "Save it again with peft's path_initial_model_for_weight_conversion.",
        )
    for option in ("layer_replication", "target_parameters", "trainable_token_indices"):
        if config.get(option):
            raise InputError(f"The adapter {checkpoint.source!r} uses {option!r}, which is not read here.", MERGE)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{str(file)!r} is not readable JSON.") from None
    if not isinstance(config, dict):
        raise InputError(f"{str(file)!r} does not hold a mapping of keys to values.")
    return config
