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

from mergecore.checkpoints.alignment import BASE_HEAD, is_head_name
from mergecore.checkpoints.checkpoint import Checkpoint, TensorInfo, open_checkpoint, write_safetensors
from mergecore.errors import InputError
from mergecore.files import atomic_folder, read_json_mapping
from mergecore.markdown import cell
from mergecore.measured import network
from mergecore.pareto_moe.unloading import open_unloading
from mergecore.plain import to_json
from mergecore.study import Study
from mergecore.task_matrix import open_task_matrix

SHARD_BYTES = 5 << 30
FACTS = "mergecore.json"
PARENTS = ("base", "models")
"""How the checkpoint was made, for `mergecore verify`."""
COMPANIONS = (
    "config.json",
    "open_clip_config.json",
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
    head: str | None = None,
    adapted: Mapping[str, torch.Tensor] | None = None,
    task: str | None = None,
    found_by: str | None = None,
    run_id: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Merge and write one checkpoint: weights in the base's dtypes, the companions of its network, a model card.

    The folder appears whole or not at all. Heads that were kept apart are written beside the weights, each as
    ``heads/<number>-<model>.safetensors`` under the names of its own network.

    Args:
        study: the prepared study.
        coefficients: [N]; a preference [T] where the study has routers.
        folder: where to; must not exist or be empty.
        measured: kind ("predicted", "real", "test") to task to metric, for the card.
        head: write the network of this model, its head included; None writes the base's network.
        adapted: tensors in the place of merged ones, as `Evaluator.adapted_tensors` gives them for one task.
        task: the one task that the network is for, if it is for one.
        found_by: what chose the coefficients, for the card; default: the study's search method.
        run_id: MLflow's name of the run, where it has one.
        shard_bytes: largest weights file; more become shards with an index.

    Raises:
        InputError: the folder is in use or cannot be created, or there is no such head.
    """
    if head is not None and head not in study.heads:
        own = ", ".join(repr(name) for name in study.heads) or "none: every tensor is merged"
        raise InputError(f"The run has no head {head!r}.", f"Heads kept apart: {own}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"The export folder {str(folder)!r} already exists.", "Name a new one.")
    if folder.exists():
        folder.rmdir()
    base = open_checkpoint(study.config.base, home=study.home)
    matrix = open_task_matrix(study.matrix_folder, key=study.matrix_key, models=study.models)
    if study.routers is None:
        merged_P = matrix.merge(coefficients)
    else:
        merged_P = open_unloading(study.routers, matrix.layout).merge(matrix, coefficients)
    infos, state = _network(study, base, matrix.named(merged_P), head)
    for name, tensor in (adapted or {}).items():
        infos[name] = TensorInfo(tuple(tensor.shape), infos[name].dtype if name in infos else tensor.dtype)
        state[name] = tensor
    companions = study.base_folder if head is None else study.heads[head].folder
    with atomic_folder(folder) as temporary:
        _write_weights(temporary, infos, state, shard_bytes, stem=base.file_stem)
        for name in COMPANIONS:
            source = companions / name if companions is not None else None
            if source is not None and source.is_file():
                shutil.copyfile(source, temporary / name)
        if head is not None and study.heads[head].classes is not None:
            _describe_classifier(study, head, temporary / "config.json")
        elif adapted:
            _describe_classes(temporary / "config.json", adapted)
        _write_heads(study, temporary / "heads")
        (temporary / "README.md").write_text(
            _card(study, coefficients, measured, head, found_by or study.config.search.method)
        )
        facts = {
            "config": study.config.model_dump(mode="json"),
            "coefficients": dict(zip(study.models, map(float, coefficients), strict=True)),
            "routers": study.routers.stem if study.routers is not None else None,
            "measured": {kind: dict(values) for kind, values in measured.items()},
            "head": head,
            "task": task,
            "method": found_by or study.config.search.method,
            "fingerprints": {key: study.fingerprints[key] for key in PARENTS},
            "run_id": run_id,
        }
        (temporary / FACTS).write_text(to_json(facts))
        mergekit = _mergekit(study, coefficients)
        if mergekit is not None:
            (temporary / "mergekit.yaml").write_text(mergekit)


def export_facts(folder: Path) -> dict[str, Any]:
    """How an exported checkpoint was made.

    Raises:
        InputError: no folder that `export_model` wrote.
    """
    facts = read_json_mapping(folder / FACTS)
    if not facts:
        raise InputError(f"{str(folder)!r} is no checkpoint that mergecore exported: it has no {FACTS}.")
    return facts


def _network(
    study: Study, base: Checkpoint, merged: Mapping[str, torch.Tensor], head: str | None
) -> tuple[dict[str, TensorInfo], dict[str, torch.Tensor]]:
    """Shapes and dtypes to write, and the tensors: the base's network, or that of the model with ``head``."""
    if head is None:
        own = {name: base.read(name) for name in base.tensors if name not in merged}  # the base's own head
        return dict(base.tensors), {**merged, **own}
    stored = study.heads[head]
    state = stored.state_dict(merged)
    own_infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    # the body in the base's formats, the head in its own
    return {name: base.tensors.get(stored.body.get(name, ""), info) for name, info in own_infos.items()}, state


def _describe_classifier(study: Study, head: str, config: Path) -> None:
    """An adapter has no config of its own: the base's, told of the classifier it was trained with."""
    stored = study.heads[head]
    content = json.loads(config.read_text("utf-8"))
    content["architectures"] = [network(study.config, study.base_folder, stored).title]
    config.write_text(json.dumps(content | _labels(stored.classes or 0), indent=2))


def _describe_classes(config: Path, adapted: Mapping[str, torch.Tensor]) -> None:
    """A head that was fitted to a task may tell fewer classes apart than the one it replaces."""
    rows = [len(tensor) for name, tensor in adapted.items() if is_head_name(name) and tensor.ndim]
    if config.is_file() and rows:
        content = json.loads(config.read_text("utf-8"))
        if len(content.get("id2label") or ()) not in (0, rows[-1]):
            config.write_text(json.dumps(content | _labels(rows[-1]), indent=2))


def _labels(classes: int) -> dict[str, Any]:
    names = {str(number): f"LABEL_{number}" for number in range(classes)}
    return {"id2label": names, "label2id": {label: int(number) for number, label in names.items()}}


def _write_heads(study: Study, folder: Path) -> None:
    for number, (name, stored) in enumerate(study.heads.items()):
        if name != BASE_HEAD and stored.file.is_file():
            folder.mkdir(exist_ok=True)
            safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)
            shutil.copyfile(stored.file, folder / f"{number}-{safe}.safetensors")


def _write_weights(
    folder: Path, infos: Mapping[str, TensorInfo], state: Mapping[str, torch.Tensor], shard_bytes: int, stem: str
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
        write_safetensors(folder / f"{stem}.safetensors", shards[0], state.__getitem__)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, state.__getitem__)
        places |= dict.fromkeys(shard, file)
    total = sum(state[name].numel() * info.dtype.itemsize for name, info in infos.items())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _card(
    study: Study,
    coefficients: np.ndarray,
    measured: Mapping[str, Mapping[str, float]],
    head: str | None,
    found_by: str,
) -> str:
    config = study.config
    front_matter: dict[str, Any] = {"tags": ["merge", "mergecore"], "base_model": config.base}
    kinds = {"predicted": "predicted by surrogate", "real": "measured", "test": "measured, held out"}
    shown = {kind: values for kind, values in measured.items() if values}
    routed = study.routers is not None
    own = {name: f"{float(c):.17g}" for name, c in zip(study.models, coefficients, strict=True)}
    lines = [
        "---",
        yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True).strip(),
        "---",
        f"# {cell(config.name)}",
        "",
        _method(study, coefficients, found_by),
        "",
        *([f"Its head is that of {cell(head)}; it was not merged.", ""] if head is not None else []),
        "| model | source | scaling coefficient |",
        "|---|---|---|",
        *(
            f"| {cell(model.name)} | {cell(model.source)} | {'by module' if routed else own.get(model.name, '')} |"
            for model in config.models
        ),
        "",
        *(["| task | preference |", "|---|---|", *(f"| {cell(n)} | {r} |" for n, r in own.items()), ""] * routed),
        "| task | metric | " + " | ".join(kinds[kind] for kind in shown) + " |",
        "|---|---|" + "---|" * len(shown),
        *(
            f"| {cell(task.name)} | {cell(task.metric)} | "
            + " | ".join(f"{values[task.name]:.4f}" if task.name in values else "" for values in shown.values())
            + " |"
            for task in config.tasks
        ),
        "",
        f"Content of the parents (SHA-256): base `{study.fingerprints['base']}`"
        + "".join(f", {cell(name)} `{print_}`" for name, print_ in study.fingerprints["models"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def _method(study: Study, coefficients: np.ndarray, found_by: str) -> str:
    """How the models were merged, in one sentence."""
    count, config = len(study.config.models), study.config
    if study.routers is not None:
        return (
            f"A merge of {count} fine-tuned models by `{cell(found_by)}`: trained routers, unloaded at the preference "
            f"below, gave each module scaling coefficients of its own (routers `{study.routers.stem}`)."
        )
    if study.of_models:
        return (
            f"A merge of {count} fine-tuned models: `theta = theta_pre + sum_n c_n (theta_n - theta_pre)`, "
            f"transform `{config.merge.transform}`, coefficients found by `{cell(found_by)}`."
        )
    formula = f"theta = theta_pre + {float(coefficients[0]):.17g} (theta_merged - theta_pre)"
    return f"A merge of {count} fine-tuned models by `{study.models[0]}`: `{formula}`."


def _mergekit(study: Study, coefficients: np.ndarray) -> str | None:
    """The same merge for mergekit's task_arithmetic; None when there is no such counterpart."""
    if study.config.merge.transform != "none" or study.heads or not study.of_models:
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
