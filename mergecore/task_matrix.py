"""One algebra for every linear merge: theta(c) = theta_pre + V c.

`TaskMatrix` stores the base and the task vectors v_n = theta_n - theta_pre as flat, memory-mapped buffers; `merge` is
the one kernel that adds them up. Shape suffixes: N models, M of them with full tensors of their own, P stored elements,
D of them with a difference in full, R ranks of all adapters together, G blocks, S elements of one tile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from mergecore.checkpoints.checkpoint import DTYPES
from mergecore.errors import InputError
from mergecore.files import read_json_mapping

ALIGNMENT = 16  # elements; every tensor starts on a cache line
TILE = 1 << 16  # elements; a tile of the sum stays in the second-level cache while N task vectors pass over it
DEVICE_TILE = 1 << 24  # elements; on an accelerator few large steps cost less than many small ones


@dataclass(frozen=True)
class Entry:
    """Where one merged tensor lies in the buffers.

    Attributes:
        tied: further names of the same tensor.
        dense: whether some model's difference is stored in full.
        low_rank: whether some adapter changes it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    tied: tuple[str, ...] = ()
    dense: bool = True
    low_rank: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Layout:
    """Names, shapes, dtypes and offsets of the merged tensors: those with differences in full, then the others.

    Attributes:
        models: names of the N models.
        entries: in the base's order within each of the two groups.
        dense_models: indices of the M models with differences in full.
    """

    models: tuple[str, ...]
    entries: tuple[Entry, ...]
    dense_models: tuple[int, ...]

    @property
    def length(self) -> int:
        """P: elements of one buffer row, padding included."""
        last = self.entries[-1] if self.entries else None
        return aligned(last.offset + last.size) if last else 0

    @property
    def dense_length(self) -> int:
        """D: elements with differences in full, at the front of the row."""
        return max((aligned(entry.offset + entry.size) for entry in self.entries if entry.dense), default=0)

    def blocks(self, block_of: Callable[[str], str | None]) -> BlockMap:
        """Group the tensors by a rule from parameter name to block name; blocks are numbered as they first appear.

        A tensor that the rule gives None belongs to no block: a merge by these blocks leaves it as it is.
        """
        names: dict[str, int] = {}
        segments: list[tuple[int, int, int]] = []
        low_rank: list[tuple[int, int]] = []
        for index, entry in enumerate(self.entries):
            name = block_of(entry.name)
            if name is None:
                continue
            block = names.setdefault(name, len(names))
            stop = aligned(entry.offset + entry.size)
            if entry.low_rank:
                low_rank.append((index, block))
            elif segments and segments[-1][1:] == (entry.offset, block):
                segments[-1] = (segments[-1][0], stop, block)
            else:
                segments.append((entry.offset, stop, block))
        return BlockMap(tuple(names), tuple(segments), tuple(low_rank))


@dataclass(frozen=True)
class BlockMap:
    """Blocks of parameters that have coefficients of their own.

    Attributes:
        names: the G blocks; row g of coefficients [G, N] belongs to ``names[g]``.
        segments: (start, stop, g), covering once the tensors of the blocks that no adapter changes.
        low_rank: (index of the entry, g) of the others.
    """

    names: tuple[str, ...]
    segments: tuple[tuple[int, int, int], ...]
    low_rank: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Factors:
    """What adapters add to one tensor [rows, cols]: left · diag(c[owner] · scale) · right.

    Attributes:
        left: [rows, R], the adapters' left factors side by side.
        right: [R, cols].
        owner: [R], the model that each rank belongs to.
        scale: [R], float32.
    """

    left: torch.Tensor
    right: torch.Tensor
    owner: torch.Tensor
    scale: torch.Tensor


class TaskMatrix:
    """Base and task vectors of N models over one layout.

    Attributes:
        layout: where each tensor lies.
        base_P: theta_pre, float32, bfloat16 or float16.
        deltas_MD: V transposed, one task vector a row, float32, bfloat16 or float16.
        factors: index of an entry to what adapters add to it.
        frozen: tensors that every candidate takes from the base.
        key: content key: checkpoints, transform and storage format.
    """

    def __init__(
        self,
        layout: Layout,
        base_P: torch.Tensor,
        deltas_MD: torch.Tensor,
        factors: Mapping[int, Factors],
        frozen: Mapping[str, torch.Tensor],
        key: str,
    ) -> None:
        self.layout = layout
        self.base_P = base_P
        self.deltas_MD = deltas_MD
        self.factors = factors
        self.frozen = frozen
        self.key = key
        self._scratch: dict[int, torch.Tensor] = {}

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the N models, in the order of the coefficients."""
        return self.layout.models

    @cached_property
    def _one_block(self) -> BlockMap:
        return self.layout.blocks(lambda name: "all")

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return self.base_P.device

    @property
    def nbytes(self) -> int:
        """Size of base, differences, factors and frozen tensors."""
        factors = [tensor for found in self.factors.values() for tensor in (found.left, found.right)]
        return sum(tensor.nbytes for tensor in (self.base_P, self.deltas_MD, *factors, *self.frozen.values()))

    def to(self, device: torch.device) -> TaskMatrix:
        """A copy on ``device``; itself when it is there already."""
        if device == self.device:
            return self
        factors = {
            index: Factors(f.left.to(device), f.right.to(device), f.owner.to(device), f.scale.to(device))
            for index, f in self.factors.items()
        }
        frozen = {name: tensor.to(device) for name, tensor in self.frozen.items()}
        return TaskMatrix(self.layout, self.base_P.to(device), self.deltas_MD.to(device), factors, frozen, self.key)

    def new_candidate(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A buffer [P] on the matrix's device for `merge` to write into, again and again."""
        return torch.zeros(self.layout.length, dtype=dtype, device=self.device)

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
        c_GM = c_GN[:, list(self.layout.dense_models)]
        found = blocks or self._one_block
        tile = TILE if self.device.type == "cpu" else DEVICE_TILE
        tiles = [(s, min(s + tile, stop), g) for start, stop, g in found.segments for s in range(start, stop, tile)]
        threads = min(torch.get_num_threads(), len(tiles)) if self.device.type == "cpu" else 1
        if threads <= 1:
            self._merge_tiles(tiles, c_GM, out, 0)
        else:
            # one matrix-vector product uses one core: each thread takes a contiguous share of the tiles
            shares = [tiles[len(tiles) * i // threads : len(tiles) * (i + 1) // threads] for i in range(threads)]
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(self._merge_tiles, shares, [c_GM] * threads, [out] * threads, range(threads)))
        with torch.inference_mode():
            for index, block in found.low_rank:
                self._merge_low_rank(index, c_GN[block], c_GM[block], out)
        return out

    def pull_back(self, index: int, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient in the coefficients of one tensor, from that in the tensor itself: v_n . g for each model.

        Args:
            index: of the tensor's entry in the layout.
            gradient: of the tensor's shape, any floating dtype, on the matrix's device.

        Returns:
            float64 [N], on the same device; sums within a tile are float32.
        """
        entry = self.layout.entries[index]
        pulled_N = torch.zeros(len(self.models), dtype=torch.float64, device=self.device)
        gradient_S = gradient.reshape(-1)
        with torch.inference_mode():
            if entry.dense:
                pulled_M = torch.zeros(len(self.layout.dense_models), dtype=torch.float64, device=self.device)
                tile = TILE if self.device.type == "cpu" else DEVICE_TILE
                for first in range(0, entry.size, tile):
                    piece_S = gradient_S[first : first + tile].to(torch.float32)
                    start = entry.offset + first
                    rows_MS = self.deltas_MD[:, start : start + len(piece_S)].to(torch.float32)
                    pulled_M += (rows_MS @ piece_S).to(torch.float64)
                pulled_N[list(self.layout.dense_models)] += pulled_M
            if entry.low_rank:
                # <g, s l r> for each rank, without its product
                factors = self.factors[index]
                rows_SC = gradient_S.to(torch.float32).view(len(factors.left), -1)
                left_RC = factors.left.to(torch.float32).T @ rows_SC
                ranks_R = (left_RC * factors.right.to(torch.float32)).sum(dim=1) * factors.scale
                pulled_N.index_add_(0, factors.owner, ranks_R.to(torch.float64))
        return pulled_N

    def base(self, index: int) -> torch.Tensor:
        """theta_pre of one entry of the layout, float32, in its own shape."""
        entry = self.layout.entries[index]
        return self.base_P[entry.offset : entry.offset + entry.size].to(torch.float32, copy=True).view(entry.shape)

    def differences(self, index: int) -> torch.Tensor:
        """The N task vectors of one entry of the layout in full, float32 [N, *shape]; adapters are multiplied out."""
        entry = self.layout.entries[index]
        found_NS = torch.zeros(len(self.models), entry.size, device=self.device)
        if entry.dense:
            for row, n in enumerate(self.layout.dense_models):
                found_NS[n] = self.deltas_MD[row, entry.offset : entry.offset + entry.size]
        if entry.low_rank:
            factors = self.factors[index]
            for n in factors.owner.unique().tolist():
                own = factors.owner == n
                left = factors.left[:, own].to(torch.float32) * factors.scale[own]
                found_NS[n] += (left @ factors.right[own].to(torch.float32)).view(-1)
        return found_NS.view(len(self.models), *entry.shape)

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
        return c.view(-1, len(self.models)).to(self.device)

    def _merge_tiles(
        self, tiles: list[tuple[int, int, int]], c_GM: torch.Tensor, out_P: torch.Tensor, thread: int
    ) -> None:
        with torch.inference_mode():
            for start, stop, block in tiles:
                self._sum(start, stop, c_GM[block], out_P[start:stop], thread)

    def _sum(self, start: int, stop: int, c_M: torch.Tensor, out_S: torch.Tensor, thread: int) -> None:
        """theta_pre + the differences in full, over one tile; float32 inside whatever is stored."""
        base_S, deltas_MS = self.base_P[start:stop], self.deltas_MD[:, start:stop]
        if base_S.dtype == deltas_MS.dtype == out_S.dtype == torch.float32:
            torch.addmv(base_S, deltas_MS.T, c_M, out=out_S)
            return
        scratch = self._thread_scratch(thread, stop - start)
        if base_S.dtype != torch.float32:
            base_S = scratch[0].copy_(base_S)
        if deltas_MS.dtype != torch.float32:
            deltas_MS = scratch[2:].copy_(deltas_MS)
        if out_S.dtype == torch.float32:
            torch.addmv(base_S, deltas_MS.T, c_M, out=out_S)
        else:
            out_S.copy_(torch.addmv(base_S, deltas_MS.T, c_M, out=scratch[1]))

    def _thread_scratch(self, thread: int, size: int) -> torch.Tensor:
        """[2 + M, size] float32: base, sum, differences."""
        if thread not in self._scratch or self._scratch[thread].shape[1] < size:
            rows = 2 + len(self.layout.dense_models)
            self._scratch[thread] = torch.empty(rows, size, device=self.device)
        return self._scratch[thread][:, :size]

    def _merge_low_rank(self, index: int, c_N: torch.Tensor, c_M: torch.Tensor, out_P: torch.Tensor) -> None:
        """One tensor that adapters change, some rows at a time so that the float32 sum stays small."""
        entry, factors = self.layout.entries[index], self.factors[index]
        weight_R = c_N[factors.owner] * factors.scale
        right_RC = factors.right.to(torch.float32)
        cols = right_RC.shape[1]
        step = max(1, (16 * TILE if self.device.type == "cpu" else DEVICE_TILE) // cols)
        for row in range(0, len(factors.left), step):
            left_SR = factors.left[row : row + step].to(torch.float32) * weight_R
            start = entry.offset + row * cols
            out_S = out_P[start : start + len(left_SR) * cols]
            sum_S = out_S if out_S.dtype == torch.float32 else torch.empty(len(out_S), device=self.device)
            if entry.dense:
                self._sum(start, start + len(out_S), c_M, sum_S, 0)
            else:
                sum_S.copy_(self.base_P[start : start + len(out_S)])
            sum_S.view(-1, cols).addmm_(left_SR, right_RC)
            if sum_S is not out_S:
                out_S.copy_(sum_S)


def write_layout(
    folder: Path,
    layout: Layout,
    *,
    base_storage: torch.dtype,
    storage: torch.dtype,
    ranks: Mapping[int, Sequence[tuple[int, int, float]]],
) -> None:
    """Say in ``folder`` what its buffers hold, for `open_task_matrix`.

    Args:
        folder: the task matrix.
        layout: where each tensor lies.
        base_storage: dtype of the base's buffer.
        storage: dtype of the differences.
        ranks: index of an entry to its (model, rank, scale), in the order of the stored factors.
    """
    meta = {
        "models": list(layout.models),
        "dense_models": list(layout.dense_models),
        "ranks": ranks,
        "base_storage": str(base_storage).removeprefix("torch."),
        "storage": str(storage).removeprefix("torch."),
        "entries": [
            {
                "name": e.name,
                "shape": list(e.shape),
                "dtype": str(e.dtype).removeprefix("torch."),
                "offset": e.offset,
                "tied": list(e.tied),
                "dense": e.dense,
                "low_rank": e.low_rank,
            }
            for e in layout.entries
        ],
    }
    (folder / "layout.json").write_text(json.dumps(meta))


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Keep how long the block took to build the task matrix in ``folder``, for `build_seconds`."""
    begun = time.perf_counter()
    yield
    (folder / "build.json").write_text(json.dumps({"seconds": time.perf_counter() - begun}))


def build_seconds(folder: Path) -> float:
    """How long it once took to build a task matrix; NaN when that is not known."""
    return float(read_json_mapping(folder / "build.json").get("seconds", float("nan")))


def open_task_matrix(
    folder: Path, *, key: str | None = None, models: tuple[str, ...] | None = None, writable: bool = False
) -> TaskMatrix:
    """Map a task matrix that `build_task_matrix` wrote; pages are shared by all processes of a node."""
    meta = json.loads((folder / "layout.json").read_text())
    entries = tuple(
        Entry(
            e["name"], tuple(e["shape"]), DTYPES[e["dtype"]], e["offset"], tuple(e["tied"]), e["dense"], e["low_rank"]
        )
        for e in meta["entries"]
    )
    layout = Layout(models or tuple(meta["models"]), entries, tuple(meta["dense_models"]))
    rows, dense = len(layout.dense_models), layout.dense_length
    base = map_buffer(folder / "base.bin", layout.length, DTYPES[meta["base_storage"]], writable)
    deltas = map_buffer(folder / "deltas.bin", rows * dense, DTYPES[meta["storage"]], writable).view(rows, dense)
    factors: dict[int, Factors] = {}
    if meta["ranks"]:
        with safe_open(folder / "factors.safetensors", framework="pt") as handle:
            for index, ranks in ((int(text), found) for text, found in meta["ranks"].items()):
                owner = torch.tensor([model for model, rank, _ in ranks for _ in range(rank)])
                scale = torch.tensor([scale for _, rank, scale in ranks for _ in range(rank)], dtype=torch.float32)
                left, right = (handle.get_tensor(f"{index}.{side}") for side in ("left", "right"))
                factors[index] = Factors(left, right, owner, scale)
    frozen: dict[str, torch.Tensor] = {}
    if (folder / "frozen.safetensors").is_file():
        with safe_open(folder / "frozen.safetensors", framework="pt") as handle:
            frozen = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return TaskMatrix(layout, base, deltas, factors, frozen, key or folder.name)


def map_buffer(file: Path, size: int, dtype: torch.dtype, shared: bool) -> torch.Tensor:
    """A file as a flat tensor; writing to it changes the file only when ``shared``."""
    if not size:
        return torch.empty(0, dtype=dtype)
    return torch.from_file(str(file), shared=shared, size=size, dtype=dtype)


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
