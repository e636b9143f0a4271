"""Task vectors from checkpoints: check that they fit, decide what is stored, stream it to disk.

What is stored, tensor by tensor:

* floating point, different from the base in at least one model: the base and M differences, in the buffers; the base's
  own 16-bit format is kept where all of these tensors have it;
* changed by adapters: the base and the factors, never their product;
* identical in all checkpoints (frozen), or not floating point (step counters, position ids): the base's tensor, once.
  Integers are never averaged;
* floating-point buffers (running means of batch norm) are merged like parameters;
* tensors with equal content in the base and in every model (tied weights): once, under the first name.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mergecore.checkpoints.checkpoint import (
    DTYPES,
    Checkpoint,
    Fingerprint,
    LowRankUpdate,
    TensorInfo,
    write_safetensors,
)
from mergecore.errors import InputError, listed
from mergecore.files import atomic_folder
from mergecore.task_matrix import Entry, Layout, TaskMatrix, aligned, map_buffer, open_task_matrix, timed, write_layout
from mergecore.transforms import TRANSFORMS
from mergecore.transforms.base import apply, transform_options

FORMAT = 2


def task_matrix_key(
    base: Fingerprint,
    models: Sequence[Fingerprint],
    *,
    transform: str,
    options: Mapping[str, object] | None = None,
    storage: str = "float32",
) -> str:
    """Content key of a task matrix: same key, same merged weights."""
    facts = [FORMAT, base.total, [model.total for model in models], transform, dict(options or {}), storage]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_mergeable(base: Checkpoint, models: Mapping[str, Checkpoint]) -> None:
    """Report the first tensors that do not fit, for every model, before any work.

    Raises:
        InputError: missing or extra tensors, other shapes, a float where another has an integer. Different floating
            dtypes are no fault: task vectors are computed in float32.
    """
    for name, model in models.items():
        missing = [key for key in base.tensors if key not in model.tensors]
        extra = [key for key in model.tensors if key not in base.tensors]
        if missing or extra:
            parts = [f"lacks {listed(missing)}"] if missing else []
            parts += [f"has {listed(extra)} which the base lacks"] if extra else []
            raise InputError(
                f"The model {name!r} has another architecture than the base: it {' and '.join(parts)}.",
                "All models must be fine-tuned from the same base.",
            )
        for key, info in base.tensors.items():
            other = model.tensors[key]
            if info.shape != other.shape:
                raise InputError(
                    f"The tensor {key!r} has the shape {list(other.shape)} in the model {name!r}, "
                    f"but {list(info.shape)} in the base.",
                    "A resized vocabulary ('merge: {vocabulary: common}' merges the common rows) or a head of its own "
                    "('merge: {heads: [pattern]}' keeps it apart)?",
                )
            if info.dtype.is_floating_point != other.dtype.is_floating_point:
                raise InputError(f"The tensor {key!r} is {other} in the model {name!r}, but {info} in the base.")


def plan_layout(
    base: Checkpoint, models: Mapping[str, Checkpoint], prints: Sequence[Fingerprint], *, keep_low_rank: bool = True
) -> tuple[Layout, list[str]]:
    """Decide by content which tensors are merged, tied or frozen.

    Args:
        base: the base checkpoint.
        models: name to checkpoint, in coefficient order.
        prints: fingerprints of the base and of the models, in that order.
        keep_low_rank: whether adapters stay factors; otherwise their products are differences in full.

    Returns:
        The layout and the names of the frozen tensors.
    """
    kinds: dict[tuple[str, ...], tuple[list[str], bool, bool]] = {}
    frozen: list[str] = []
    changed_in_full: set[int] = set()
    for name, info in base.tensors.items():
        contents = tuple(print_.tensors[name] for print_ in prints)
        if not info.dtype.is_floating_point or len(set(contents)) == 1 or not int(np.prod(info.shape)):
            frozen.append(name)
        elif contents in kinds:
            kinds[contents][0].append(name)
        else:
            adapted = [keep_low_rank and name in model.updates for model in models.values()]
            in_full = {n for n in range(len(models)) if contents[n + 1] != contents[0] and not adapted[n]}
            changed_in_full |= in_full
            kinds[contents] = ([name], bool(in_full), any(adapted))
    entries: list[Entry] = []
    offset = 0
    for names, dense, low_rank in sorted(kinds.values(), key=lambda kind: not kind[1]):  # stable: the base's order
        info = base.tensors[names[0]]
        entries.append(Entry(names[0], info.shape, info.dtype, offset, tuple(names[1:]), dense, low_rank))
        offset = aligned(offset + entries[-1].size)
    return Layout(tuple(models), tuple(entries), tuple(sorted(changed_in_full))), frozen


def build_task_matrix(
    folder: Path,
    base: Checkpoint,
    models: Mapping[str, Checkpoint],
    *,
    transform: str = "none",
    options: Mapping[str, object] | None = None,
    storage: str = "float32",
    fingerprints: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TaskMatrix:
    """Build, or map what an earlier run built, under ``folder/<content key>``.

    Checkpoints are streamed: beside the memory-mapped buffers at most one tensor of the base and one of a model are in
    memory.

    Args:
        folder: where task matrices live.
        base: the checkpoint all models were fine-tuned from.
        models: name to checkpoint, in coefficient order.
        transform: registered name of V -> V'.
        options: options of the transform.
        storage: dtype name of the stored task vectors.
        fingerprints: cache folder of `Checkpoint.fingerprint`.
        progress: called with (tensors done, tensors in all), counting a transform's pass as well.

    Raises:
        InputError: the checkpoints do not fit together, or every model equals the base.
    """
    check_mergeable(base, models)
    prints = [checkpoint.fingerprint(fingerprints) for checkpoint in (base, *models.values())]
    cls = TRANSFORMS.get(transform)
    chosen = transform_options(cls, dict(options or {}), transform)
    key = task_matrix_key(prints[0], prints[1:], transform=transform, options=chosen.model_dump(), storage=storage)
    target = folder / key
    if not target.is_dir():
        layout, frozen = plan_layout(base, models, prints, keep_low_rank=cls.keeps_low_rank)
        if not layout.entries:
            raise InputError("Every model is identical to the base: there is nothing to merge.")
        with atomic_folder(target) as temporary, timed(temporary):
            changes = transform != "none"
            first, second = _halves(progress) if changes else (progress, None)
            _write(temporary, base, list(models.values()), layout, frozen, DTYPES[storage], first)
            if changes:
                apply(cls(chosen), open_task_matrix(temporary, key=key, writable=True), second)
    # names are no content: two studies may call the same models differently
    return open_task_matrix(target, key=key, models=tuple(models))


Progress = Callable[[int, int], None]


def _halves(progress: Progress | None) -> tuple[Progress | None, Progress | None]:
    """Two counters for two passes, which together make one."""
    if progress is None:
        return None, None
    return lambda done, count: progress(done, 2 * count), lambda done, count: progress(count + done, 2 * count)


def _write(
    folder: Path,
    base: Checkpoint,
    models: list[Checkpoint],
    layout: Layout,
    frozen: list[str],
    storage: torch.dtype,
    progress: Callable[[int, int], None] | None,
) -> None:
    formats = {entry.dtype for entry in layout.entries}
    base_storage = formats.pop() if formats in ({torch.bfloat16}, {torch.float16}) else torch.float32
    rows, dense = len(layout.dense_models), layout.dense_length
    base_P = map_buffer(folder / "base.bin", layout.length, base_storage, True)
    deltas_MD = map_buffer(folder / "deltas.bin", rows * dense, storage, True).view(rows, dense)
    for done, entry in enumerate(layout.entries):
        span = slice(entry.offset, entry.offset + entry.size)
        base_P[span] = base.read(entry.name).reshape(-1)
        for row, n in enumerate(layout.dense_models):
            update = models[n].updates.get(entry.name)
            if entry.dense and update is None:
                deltas_MD[row, span] = models[n].read(entry.name).reshape(-1).to(torch.float32) - base_P[span]
            elif entry.dense and not entry.low_rank and update is not None:
                product = update.left().to(torch.float32) @ update.right().to(torch.float32)
                deltas_MD[row, span] = product.mul_(update.scale).reshape(-1)
            if entry.dense and not torch.isfinite(deltas_MD[row, span]).all():
                raise InputError(
                    f"The tensor {entry.name!r} of the model {layout.models[n]!r} or of the base is not finite, or "
                    f"their difference is too large for {str(storage).removeprefix('torch.')}."
                )
        if progress:
            progress(done + 1, len(layout.entries))
    ranks = _write_factors(folder / "factors.safetensors", models, layout)
    if frozen:
        write_safetensors(folder / "frozen.safetensors", {name: base.tensors[name] for name in frozen}, base.read)
    write_layout(folder, layout, base_storage=base_storage, storage=storage, ranks=ranks)


def _write_factors(file: Path, models: Sequence[Checkpoint], layout: Layout) -> dict[int, list[tuple[int, int, float]]]:
    """Write the factors of each tensor side by side; which (model, rank, scale) they are, by index of the entry."""
    found: dict[int, dict[int, LowRankUpdate]] = {}
    for index, entry in enumerate(layout.entries):
        updates = {n: model.updates.get(entry.name) for n, model in enumerate(models)}
        if entry.low_rank:
            found[index] = {n: update for n, update in updates.items() if update is not None}
    infos: dict[str, TensorInfo] = {}
    for index, of_models in found.items():
        shape = layout.entries[index].shape
        rank = sum(update.rank for update in of_models.values())
        dtype = functools.reduce(torch.promote_types, (update.dtype for update in of_models.values()))
        infos[f"{index}.left"] = TensorInfo((shape[0], rank), dtype)
        infos[f"{index}.right"] = TensorInfo((rank, int(np.prod(shape[1:], dtype=np.int64))), dtype)

    def read(name: str) -> torch.Tensor:
        index, side = name.split(".")
        parts = [getattr(update, side)() for update in found[int(index)].values()]
        return torch.cat(parts, dim=1 if side == "left" else 0)

    if infos:
        write_safetensors(file, infos, read)
    return {index: [(n, u.rank, u.scale) for n, u in of_models.items()] for index, of_models in found.items()}
