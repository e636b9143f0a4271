"""Write a merged model as a checkpoint that the ecosystem loads as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from mergecore.checkpoints import TensorInfo, open_checkpoint, write_safetensors
from mergecore.errors import InputError
from mergecore.files import atomic_folder
from mergecore.study import Study
from mergecore.task_matrix import open_task_matrix

SHARD_BYTES = 5 << 30
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
)
"""Files beside the weights that are copied from the base."""


def export_model(
    study: Study,
    coefficients: np.ndarray,
    folder: Path,
    *,
    measured: Mapping[str, Mapping[str, float]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Merge and write one checkpoint: weights in the base's dtypes, the base's companions, a model card.

    The folder appears whole or not at all.

    Args:
        study: the prepared study.
        coefficients: [N].
        folder: where to; must not exist or be empty.
        measured: kind ("predicted", "real", "test") to task to metric, for the card.
        shard_bytes: largest weights file; more become shards with an index.

    Raises:
        InputError: the folder is in use, or cannot be created.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"The export folder {str(folder)!r} already exists.", "Name a new one.")
    if folder.exists():
        folder.rmdir()
    matrix = open_task_matrix(study.matrix_folder, key=study.matrix_key, models=tuple(study.models))
    state = matrix.named(matrix.merge(coefficients))
    infos = open_checkpoint(study.config.base, home=study.home).tensors
    with atomic_folder(folder) as temporary:
        _write_weights(temporary, infos, state, shard_bytes)
        for name in COMPANIONS:
            source = study.base_folder / name if study.base_folder is not None else None
            if source is not None and source.is_file():
                shutil.copyfile(source, temporary / name)
        (temporary / "README.md").write_text(_card(study, coefficients, measured))
        mergekit = _mergekit(study, coefficients)
        if mergekit is not None:
            (temporary / "mergekit.yaml").write_text(mergekit)


def _write_weights(
    folder: Path, infos: Mapping[str, TensorInfo], state: Mapping[str, torch.Tensor], shard_bytes: int
) -> None:
    shards: list[dict[str, TensorInfo]] = [{}]
    filled = 0
    for name, info in infos.items():
        size = state[name].numel() * info.dtype.itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = info
        filled += size
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", shards[0], state.__getitem__)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, state.__getitem__)
        places |= dict.fromkeys(shard, file)
    total = sum(state[name].numel() * info.dtype.itemsize for name, info in infos.items())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _card(study: Study, coefficients: np.ndarray, measured: Mapping[str, Mapping[str, float]]) -> str:
    config = study.config
    head: dict[str, Any] = {"tags": ["merge", "mergecore"], "base_model": config.base}
    kinds = {"predicted": "predicted by surrogate", "real": "measured", "test": "measured, held out"}
    shown = {kind: values for kind, values in measured.items() if values}
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(),
        "---",
        f"# {_cell(config.name)}",
        "",
        f"A merge of {len(study.models)} fine-tuned models: `theta = theta_pre + sum_n c_n (theta_n - theta_pre)`, "
        f"transform `{config.merge.transform}`, coefficients found by `{config.search.method}`.",
        "",
        "| model | source | scaling coefficient |",
        "|---|---|---|",
        *(
            f"| {_cell(model.name)} | {_cell(model.source)} | {float(c):.17g} |"
            for model, c in zip(config.models, coefficients, strict=True)
        ),
        "",
        "| task | metric | " + " | ".join(kinds[kind] for kind in shown) + " |",
        "|---|---|" + "---|" * len(shown),
        *(
            f"| {_cell(task.name)} | {_cell(task.metric)} | "
            + " | ".join(f"{values[task.name]:.4f}" if task.name in values else "" for values in shown.values())
            + " |"
            for task in config.tasks
        ),
        "",
        f"Content of the parents (SHA-256): base `{study.fingerprints['base']}`"
        + "".join(f", {_cell(name)} `{print_}`" for name, print_ in study.fingerprints["models"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that stays one cell of a markdown table and no markup."""
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;")):
        text = text.replace(character, safe)
    return " ".join(text.split())


def _mergekit(study: Study, coefficients: np.ndarray) -> str | None:
    """The same merge for mergekit's task_arithmetic; None when the transform has no such counterpart."""
    if study.config.merge.transform != "none":
        return None
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": study.config.base,
        "models": [
            {"model": model.source, "parameters": {"weight": float(c)}}
            for model, c in zip(study.config.models, coefficients, strict=True)
        ],
        "parameters": {"normalize": False},
        "dtype": "float32",
    }
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
