"""Checkpoints: find them, open them without running anything in them, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mergecore.errors import InputError, first_line
from mergecore.files import atomic_write
from mergecore.registry import Registry

SOURCES = Registry(
    "checkpoint source",
    {
        "digits": "mergecore.digits:model_folder",
        "open_clip": "mergecore.architectures.open_clip_models:weights_file",
    },
)
"""Prefixes of the form ``digits:upright``; each entry is ``(rest, home) -> path`` of a folder or file."""

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".th", ".ckpt")
STATE_KEYS = ("state_dict", "model", "model_state_dict")
"""Where training checkpoints hold the network."""

ADAPTER_CONFIG = "adapter_config.json"
STEMS = (
    ("model", ".safetensors"),
    ("open_clip_model", ".safetensors"),
    ("pytorch_model", ".bin"),
    ("open_clip_pytorch_model", ".bin"),
    ("adapter_model", ".safetensors"),
    ("adapter_model", ".bin"),
)
"""Weights files of hub folders, in the order in which they are looked for: safetensors before torch files."""
POINTER = b"version https://git-lfs.github.com/spec/"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.json", "*.txt", "*.model"]
SAFETENSORS_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SAFETENSORS_CODES}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True)
class Fingerprint:
    """Content of a checkpoint: a digest for each tensor and one over all of them.

    The digest of a tensor covers dtype, shape and bytes, so the same weights have the same fingerprint in every file
    format and under every path.
    """

    total: str
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class LowRankUpdate:
    """The change scale · left @ right of one tensor of shape [rows, ...], its other axes flattened.

    Attributes:
        left: reads [rows, r].
        right: reads [r, cols].
        scale: what the product is multiplied by.
        rank: r.
        dtype: format of the stored factors.
        digest: content of the factors and the scale.
    """

    left: Callable[[], torch.Tensor]
    right: Callable[[], torch.Tensor]
    scale: float
    rank: int
    dtype: torch.dtype
    digest: Callable[[Path | None], str]


@dataclass
class Checkpoint:
    """An opened checkpoint: names, shapes and dtypes are known, values are read on demand.

    Attributes:
        source: what the user wrote, for messages.
        tensors: name to shape and dtype.
        folder: the folder that holds config and tokenizer files, if there is one.
        updates: tensors that the model changes by a low-rank product; `read` gives what the product is added to.
    """

    source: str
    tensors: dict[str, TensorInfo]
    _readers: dict[str, Callable[[str], torch.Tensor]] = field(repr=False)
    _files: list[Path] = field(repr=False, default_factory=list)
    folder: Path | None = None
    updates: Mapping[str, LowRankUpdate] = field(default_factory=dict)
    _fingerprint: Fingerprint | None = field(repr=False, default=None, compare=False)

    @property
    def is_adapter(self) -> bool:
        """Whether these are the factors of a PEFT adapter and not a network's weights."""
        return any(path.stem.startswith("adapter_model") for path in self._files)

    @property
    def file_stem(self) -> str:
        """Name of the weights file that the loader of its folder looks for."""
        name = self._files[0].name if self._files and self.folder else ""
        return next((stem for stem, _ in STEMS if stem.startswith("open_clip") and name.startswith(stem)), "model")

    def read(self, name: str) -> torch.Tensor:
        """The tensor ``name``, on the CPU, in its own dtype."""
        try:
            return self._readers[name](name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(f"The tensor {name!r} of {self.source!r} cannot be read: {error}") from None

    def fingerprint(self, cache: Path | None = None) -> Fingerprint:
        """Digest every tensor (one in memory at a time), once.

        Args:
            cache: a folder that remembers fingerprints by path, size and modification time of the files.
        """
        if self._fingerprint is None:
            self._fingerprint = self._digest_all(cache)
        return self._fingerprint

    def _digest_all(self, cache: Path | None) -> Fingerprint:
        entry = cache / f"{self._file_stamp()}.json" if cache is not None and self._files else None
        if entry is not None and entry.is_file():
            try:
                stored = json.loads(entry.read_text())
                if stored["tensors"].keys() == self.tensors.keys():
                    return Fingerprint(stored["total"], stored["tensors"])
            except (ValueError, KeyError):
                pass  # a damaged cache entry is recomputed
        tensors = {name: tensor_digest(self.read(name)) for name in self.tensors}
        total = hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()
        if entry is not None:
            atomic_write(entry, json.dumps({"source": self.source, "total": total, "tensors": tensors}))
        return Fingerprint(total, tensors)

    def _file_stamp(self) -> str:
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self._files]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes | memoryview:
    if not tensor.numel():
        return b""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def from_state_dict(state: Mapping[str, torch.Tensor], *, source: str = "state dict in memory") -> Checkpoint:
    """A checkpoint over tensors that are already in memory; nothing is copied."""
    tensors = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    return Checkpoint(source, tensors, {name: state.__getitem__ for name in tensors})


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], torch.Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file tensor by tensor, so that one at a time is in memory.

    Args:
        path: the file; it must not be read before this returns.
        tensors: names with the shape and dtype to write, in file order.
        read: returns a tensor by name; it is cast to the stated dtype.
        metadata: text entries of the header.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, info in tensors.items():
        size = math.prod(info.shape) * info.dtype.itemsize
        header[name] = {
            "dtype": SAFETENSORS_CODES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as handle:
        handle.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, info in tensors.items():
            handle.write(_bytes(read(name).to(info.dtype)))


def locate(source: str, home: Path) -> Path:
    """The local file or folder behind what the user wrote.

    Args:
        source: a registered prefix (``digits:upright``), a local path, or a hub id ``owner/name[@revision]``.
        home: MERGECORE_HOME, where prefixes may keep what they make.

    Raises:
        InputError: nothing is there, or the hub cannot be reached.
    """
    prefix, separator, rest = source.partition(":")
    if separator and prefix in SOURCES:
        return SOURCES.get(prefix)(rest, home)
    path = Path(source).expanduser()
    if path.exists():
        return path
    name, _, revision = source.partition("@")
    if HUB_ID.fullmatch(name) and not path.suffix and not Path(name).parent.exists():
        return _download(name, revision or None)
    raise InputError(f"The checkpoint {source!r} does not exist.")


def open_checkpoint(source: str | Path, *, home: Path) -> Checkpoint:
    """Open a checkpoint from any supported source.

    Raises:
        InputError: missing, truncated, empty, of an unknown kind, or a pickle that is not a plain state dict.
    """
    path = locate(str(source), home)
    checkpoint = _open_folder(path, str(source)) if path.is_dir() else _open_files([path], str(source))
    if not checkpoint.tensors:
        raise InputError(f"The checkpoint {str(source)!r} holds no tensors.")
    return checkpoint


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"{name!r} is no local path and could not be fetched from the hub: {reason}.") from None


def _open_folder(folder: Path, source: str) -> Checkpoint:
    """A model or adapter folder in the hub's format: one file, or shards with an index."""
    for stem, suffix in STEMS:
        index = folder / f"{stem}{suffix}.index.json"
        single = folder / f"{stem}{suffix}"
        if single.is_file():
            checkpoint = _open_files([single], source)
        elif index.is_file():
            checkpoint = _open_files([folder / shard for shard in _shards(index)], source)
        else:
            continue
        checkpoint.folder = folder
        return checkpoint
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        checkpoint = _open_files(files, source)
        checkpoint.folder = folder
        return checkpoint
    raise InputError(
        f"The folder {source!r} holds no model.safetensors, pytorch_model.bin, adapter_model.safetensors or index of "
        "shards.",
        "Is it a checkpoint saved with save_pretrained?",
    )


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"The index {str(index)!r} is not a map of tensors to shards.") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"The index {str(index)!r} names {name!r}, which is no file beside it.")
        if not (index.parent / name).is_file():
            raise InputError(f"The shard {name!r} that {str(index)!r} names is missing.")
    return names


def _open_files(paths: list[Path], source: str) -> Checkpoint:
    tensors: dict[str, TensorInfo] = {}
    readers: dict[str, Callable[[str], torch.Tensor]] = {}
    for path in paths:
        for name, info, reader in _open_file(path):
            if name in tensors:
                raise InputError(f"The tensor {name!r} stands in two files of {source!r}.")
            tensors[name] = info
            readers[name] = reader
    return Checkpoint(source, tensors, readers, list(paths))


def refuse_pointer(path: Path) -> None:
    """Raise ``InputError`` for what a clone without Git LFS leaves in the place of a large file."""
    with path.open("rb") as handle:
        if handle.read(len(POINTER)) == POINTER:
            raise InputError(
                f"{str(path)!r} is no checkpoint but a pointer of Git LFS to one.", "Fetch it with 'git lfs pull'."
            )


def _open_file(path: Path) -> Iterator[tuple[str, TensorInfo, Callable[[str], torch.Tensor]]]:
    refuse_pointer(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _open_torch(path)
    raise InputError(
        f"{str(path)!r} is no checkpoint this tool reads.",
        f"Known: a model folder, .safetensors, {', '.join(TORCH_SUFFIXES)}.",
    )


def _open_safetensors(path: Path) -> Iterator[tuple[str, TensorInfo, Callable[[str], torch.Tensor]]]:
    try:
        handle = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{str(path)!r} is not a complete safetensors file: {error}.", "Copy it again.") from None
    for name in handle.keys():  # noqa: SIM118
        part = handle.get_slice(name)
        dtype = _safetensors_dtype(part.get_dtype(), path, name)
        yield name, TensorInfo(tuple(part.get_shape()), dtype), handle.get_tensor


def _safetensors_dtype(code: str, path: Path, name: str) -> torch.dtype:
    for dtype, known in SAFETENSORS_CODES.items():
        if code == known:
            return dtype
    raise InputError(f"The tensor {name!r} of {str(path)!r} has the dtype {code}, which cannot be merged.")


def _open_torch(path: Path) -> Iterator[tuple[str, TensorInfo, Callable[[str], torch.Tensor]]]:
    state = _state_dict(_load(path), path)
    for name, tensor in state.items():
        yield name, TensorInfo(tuple(tensor.shape), tensor.dtype), state.__getitem__


def _load(path: Path) -> object:
    """What a file of torch.save holds, tensors mapped where its format allows, and nothing but tensors."""
    import pickle

    def load(mapped: bool) -> object:
        with warnings.catch_warnings():  # about pickle protocols; what matters is raised
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)

    try:
        try:
            return load(mapped=True)
        except (RuntimeError, OSError, EOFError, ValueError):
            return load(mapped=False)  # files of the format before torch 1.6 cannot be mapped
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error):
            raise InputError(
                f"{str(path)!r} is a pickle of more than tensors; opening it could run code, so it is refused.",
                f"Convert it, which runs nothing in it: mergecore convert {shlex.quote(str(path))} "
                f"{shlex.quote(path.stem + '.safetensors')}",
            ) from None
        raise InputError(
            f"{str(path)!r} is not a complete state dict: {first_line(error)}.", "Copy it again."
        ) from None


def _state_dict(content: object, path: Path) -> dict[str, torch.Tensor]:
    """The mapping of names to tensors, at the top level or under the usual keys of training checkpoints."""
    for key in (None, *STATE_KEYS):
        inner = content if key is None else content.get(key) if isinstance(content, dict) else None
        if isinstance(inner, dict) and inner and all(isinstance(value, torch.Tensor) for value in inner.values()):
            return {str(name): tensor.detach() for name, tensor in inner.items()}
    raise InputError(f"{str(path)!r} holds no state dict (a mapping of names to tensors).")
