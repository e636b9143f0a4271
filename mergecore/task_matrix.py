"""One algebra for every linear merge: theta(c) = theta_pre + V c.

`TaskMatrix` stores the base and the task vectors v_n = theta_n - theta_pre as flat, memory-mapped buffers; `merge` is
the one kernel that adds them up. Shape suffixes: N models, P stored elements, G blocks, S elements of one tile.

What is stored, tensor by tensor:

* floating point, different from the base in at least one model: base and task vectors, in the buffers;
* identical in all checkpoints (frozen), or not floating point (step counters, position ids): the base's tensor, once.
  Integers are never averaged;
* floating-point buffers (running means of batch norm) are merged like parameters;
* tensors with equal content in the base and in every model (tied weights): once, under the first name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from mergecore.checkpoints import DTYPES, Checkpoint, Fingerprint, write_safetensors
from mergecore.errors import InputError
from mergecore.files import atomic_folder
from mergecore.transforms import TRANSFORMS

FORMAT = 1
ALIGNMENT = 16  # elements; every tensor starts on a cache line
TILE = 1 << 16  # elements; a tile of the sum stays in the second-level cache while N task vectors pass over it


@dataclass(frozen=True)
class Entry:
    """Where one merged tensor lies in the buffers."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    tied: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Layout:
    """Names, shapes, dtypes and offsets of the merged tensors, in the base's order."""

    models: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def length(self) -> int:
        """P: elements of one buffer row, padding included."""
        last = self.entries[-1] if self.entries else None
        return _aligned(last.offset + last.size) if last else 0

    def blocks(self, block_of: Callable[[str], str]) -> BlockMap:
        """Group the tensors by a rule from parameter name to block name; blocks are numbered as they first appear."""
        names: dict[str, int] = {}
        segments: list[tuple[int, int, int]] = []
        for entry in self.entries:
            block = names.setdefault(block_of(entry.name), len(names))
            stop = _aligned(entry.offset + entry.size)
            if segments and segments[-1][2] == block:
                segments[-1] = (segments[-1][0], stop, block)
            else:
                segments.append((entry.offset, stop, block))
        return BlockMap(tuple(names), tuple(segments))


@dataclass(frozen=True)
class BlockMap:
    """Blocks of parameters that have coefficients of their own.

    Attributes:
        names: the G blocks; row g of coefficients [G, N] belongs to ``names[g]``.
        segments: (start, stop, g), covering the buffer once.
    """

    names: tuple[str, ...]
    segments: tuple[tuple[int, int, int], ...]


class TaskMatrix:
    """Base and task vectors of N models over one layout.

    Attributes:
        layout: where each tensor lies.
        base_P: theta_pre, float32.
        deltas_NP: V transposed, one task vector a row, float32, bfloat16 or float16.
        frozen: tensors that every candidate takes from the base.
        key: content key: checkpoints, transform and storage format.
    """

    def __init__(
        self,
        layout: Layout,
        base_P: torch.Tensor,
        deltas_NP: torch.Tensor,
        frozen: Mapping[str, torch.Tensor],
        key: str,
    ) -> None:
        self.layout = layout
        self.base_P = base_P
        self.deltas_NP = deltas_NP
        self.frozen = frozen
        self.key = key
        self._scratch: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the N models, in the order of the coefficients."""
        return self.layout.models

    @cached_property
    def _one_block(self) -> BlockMap:
        return self.layout.blocks(lambda name: "all")

    def new_candidate(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A buffer [P] for `merge` to write into, again and again."""
        return torch.zeros(self.layout.length, dtype=dtype)

    def merge(
        self,
        coefficients: np.ndarray | Sequence[float],
        *,
        out: torch.Tensor | None = None,
        blocks: BlockMap | None = None,
    ) -> torch.Tensor:
        """theta_pre + V c, written tile by tile into ``out``.

        Args:
            coefficients: [N], or [G, N] when ``blocks`` says which parameters use which row.
            out: buffer [P] of any floating dtype to write into (`new_candidate`); allocated when missing.
            blocks: the grouping of the parameters, from `Layout.blocks`.

        Returns:
            ``out``. Sums are float32 whatever the storage; the result does not depend on the number of threads.

        Raises:
            InputError: a wrong shape, or a coefficient that is not finite.
        """
        c_GN = self._checked(coefficients, blocks)
        out = self.new_candidate() if out is None else out
        segments = (blocks or self._one_block).segments
        tiles = [(s, min(s + TILE, stop), g) for start, stop, g in segments for s in range(start, stop, TILE)]
        threads = min(torch.get_num_threads(), len(tiles))
        if threads <= 1:
            self._merge_tiles(tiles, c_GN, out, 0)
        else:
            # one matrix-vector product uses one core: each thread takes a contiguous share of the tiles
            shares = [tiles[len(tiles) * i // threads : len(tiles) * (i + 1) // threads] for i in range(threads)]
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(self._merge_tiles, shares, [c_GN] * threads, [out] * threads, range(threads)))
        return out

    def named(self, candidate_P: torch.Tensor) -> dict[str, torch.Tensor]:
        """The state dict of a candidate: views into its buffer, tied names and frozen tensors included."""
        state = {name: tensor for name, tensor in self.frozen.items()}
        for entry in self.layout.entries:
            view = candidate_P[entry.offset : entry.offset + entry.size].view(entry.shape)
            for name in (entry.name, *entry.tied):
                state[name] = view
        return state

    def _checked(self, coefficients: np.ndarray | Sequence[float], blocks: BlockMap | None) -> torch.Tensor:
        c = torch.as_tensor(np.asarray(coefficients, dtype=np.float64)).to(torch.float32)
        expected = (len(self.models),) if blocks is None else (len(blocks.names), len(self.models))
        if tuple(c.shape) != expected:
            raise InputError(f"Coefficients of shape {list(c.shape)} where {list(expected)} is needed.")
        if not torch.isfinite(c).all():
            raise InputError("A scaling coefficient is not finite.")
        return c.view(-1, len(self.models))

    def _merge_tiles(
        self, tiles: list[tuple[int, int, int]], c_GN: torch.Tensor, out_P: torch.Tensor, thread: int
    ) -> None:
        direct_in = self.deltas_NP.dtype == torch.float32
        direct_out = out_P.dtype == torch.float32
        delta_NS, sum_S = (None, None) if direct_in and direct_out else self._thread_scratch(thread)
        with torch.inference_mode():
            for start, stop, block in tiles:
                tile_NS = self.deltas_NP[:, start:stop]
                if not direct_in:
                    assert delta_NS is not None
                    tile_NS = delta_NS[:, : stop - start].copy_(tile_NS)
                target_S = out_P[start:stop] if direct_out else sum_S[: stop - start]  # type: ignore[index]
                torch.addmv(self.base_P[start:stop], tile_NS.T, c_GN[block], out=target_S)
                if not direct_out:
                    out_P[start:stop].copy_(target_S)

    def _thread_scratch(self, thread: int) -> tuple[torch.Tensor, torch.Tensor]:
        if thread not in self._scratch:
            self._scratch[thread] = (torch.empty(len(self.models), TILE), torch.empty(TILE))
        return self._scratch[thread]


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
            parts = [f"lacks {_listed(missing)}"] if missing else []
            parts += [f"has {_listed(extra)} which the base lacks"] if extra else []
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
                    "A resized vocabulary or a head of its own? Such a tensor cannot be merged.",
                )
            if info.dtype.is_floating_point != other.dtype.is_floating_point:
                raise InputError(f"The tensor {key!r} is {other} in the model {name!r}, but {info} in the base.")


def plan_layout(
    base: Checkpoint, models: Mapping[str, Checkpoint], prints: Sequence[Fingerprint]
) -> tuple[Layout, list[str]]:
    """Decide by content which tensors are merged, tied or frozen.

    Args:
        base: the base checkpoint.
        models: name to checkpoint, in coefficient order.
        prints: fingerprints of the base and of the models, in that order.

    Returns:
        The layout and the names of the frozen tensors.
    """
    entries: dict[tuple[str, ...], Entry] = {}
    frozen: list[str] = []
    offset = 0
    for name, info in base.tensors.items():
        contents = tuple(print_.tensors[name] for print_ in prints)
        if not info.dtype.is_floating_point or len(set(contents)) == 1 or not int(np.prod(info.shape)):
            frozen.append(name)
        elif contents in entries:
            first = entries[contents]
            entries[contents] = Entry(first.name, first.shape, first.dtype, first.offset, (*first.tied, name))
        else:
            entry = Entry(name, info.shape, info.dtype, offset)
            entries[contents] = entry
            offset = _aligned(offset + entry.size)
    return Layout(tuple(models), tuple(entries.values())), frozen


def build_task_matrix(
    folder: Path,
    base: Checkpoint,
    models: Mapping[str, Checkpoint],
    *,
    transform: str = "none",
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
        storage: dtype name of the stored task vectors.
        fingerprints: cache folder of `Checkpoint.fingerprint`.
        progress: called with (tensors done, tensors in all).

    Raises:
        InputError: the checkpoints do not fit together, or every model equals the base.
    """
    check_mergeable(base, models)
    prints = [checkpoint.fingerprint(fingerprints) for checkpoint in (base, *models.values())]
    key = task_matrix_key(prints[0], prints[1:], transform=transform, storage=storage)
    target = folder / key
    if not target.is_dir():
        layout, frozen = plan_layout(base, models, prints)
        if not layout.entries:
            raise InputError("Every model is identical to the base: there is nothing to merge.")
        with atomic_folder(target) as temporary:
            _write(temporary, base, list(models.values()), layout, frozen, DTYPES[storage], progress)
            TRANSFORMS.get(transform)(open_task_matrix(temporary, key=key, writable=True))
    # names are no content: two studies may call the same models differently
    return open_task_matrix(target, key=key, models=tuple(models))


def open_task_matrix(
    folder: Path, *, key: str | None = None, models: tuple[str, ...] | None = None, writable: bool = False
) -> TaskMatrix:
    """Map a task matrix that `build_task_matrix` wrote; pages are shared by all processes of a node."""
    meta = json.loads((folder / "layout.json").read_text())
    entries = tuple(
        Entry(e["name"], tuple(e["shape"]), DTYPES[e["dtype"]], e["offset"], tuple(e["tied"])) for e in meta["entries"]
    )
    layout = Layout(models or tuple(meta["models"]), entries)
    length, count = layout.length, len(layout.models)
    storage = DTYPES[meta["storage"]]
    base = torch.from_file(str(folder / "base.bin"), shared=writable, size=length, dtype=torch.float32)
    deltas = torch.from_file(str(folder / "deltas.bin"), shared=writable, size=length * count, dtype=storage)
    frozen: dict[str, torch.Tensor] = {}
    if (folder / "frozen.safetensors").is_file():
        with safe_open(folder / "frozen.safetensors", framework="pt") as handle:
            frozen = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return TaskMatrix(layout, base, deltas.view(count, length), frozen, key or folder.name)


def _write(
    folder: Path,
    base: Checkpoint,
    models: list[Checkpoint],
    layout: Layout,
    frozen: list[str],
    storage: torch.dtype,
    progress: Callable[[int, int], None] | None,
) -> None:
    length = layout.length
    base_P = torch.from_file(str(folder / "base.bin"), shared=True, size=length, dtype=torch.float32)
    deltas = torch.from_file(str(folder / "deltas.bin"), shared=True, size=length * len(models), dtype=storage)
    deltas_NP = deltas.view(len(models), length)
    for done, entry in enumerate(layout.entries):
        span = slice(entry.offset, entry.offset + entry.size)
        base_P[span] = base.read(entry.name).reshape(-1)
        for n, model in enumerate(models):
            deltas_NP[n, span] = model.read(entry.name).reshape(-1).to(torch.float32) - base_P[span]
        if progress:
            progress(done + 1, len(layout.entries))
    if frozen:
        write_safetensors(folder / "frozen.safetensors", {name: base.tensors[name] for name in frozen}, base.read)
    meta = {
        "models": list(layout.models),
        "storage": str(storage).removeprefix("torch."),
        "entries": [
            {
                "name": e.name,
                "shape": list(e.shape),
                "dtype": str(e.dtype).removeprefix("torch."),
                "offset": e.offset,
                "tied": list(e.tied),
            }
            for e in layout.entries
        ],
    }
    (folder / "layout.json").write_text(json.dumps(meta))


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _listed(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more
