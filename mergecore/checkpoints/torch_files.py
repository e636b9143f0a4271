"""What ``torch.save`` wrote, of any object, read without running anything in it: tensors as places in the file.

Read are the zip format (since torch 1.6), the stream format before it, TorchScript archives, and pickles that were
written without torch. `mergecore.checkpoints.inert_pickle` builds the objects.
"""

from __future__ import annotations

import itertools
import mmap
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergecore.checkpoints.checkpoint import TensorInfo, refuse_pointer
from mergecore.checkpoints.inert_pickle import Buffer, Machine, Name, Record, Window, damaged, plain_key
from mergecore.errors import InputError

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
"""What the stream format begins with, as a pickled number."""

MAX_DIMENSIONS = 64

BIG_ENDIAN = "{!r} was written by a big-endian machine, which is not read here."

LOAD_FROM_BYTES = Name("torch.storage", "_load_from_bytes")

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Classes in the module torch by which files say what a storage holds."""


@dataclass(eq=False, slots=True)
class Storage:
    """Numbers of one kind in a row.

    Attributes:
        dtype: None for a kind that cannot be merged.
        kind: what the file calls it.
        count: how many the file says there are.
        data: the buffer that holds them.
        start: where; None until it is known.
    """

    dtype: torch.dtype | None
    kind: str
    count: int
    data: Buffer
    start: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """A tensor in a file: a strided view of a storage.

    Attributes:
        storage: what it views.
        offset: of its first element in the storage.
        size: its shape.
        stride: steps between elements along each axis, in elements.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype, once it is certain that the file holds every element.

        Raises:
            InputError: it does not, or they are of a kind that cannot be merged; ``name`` is for the message.
        """
        storage = self.storage
        if storage.dtype is None:
            raise InputError(f"The tensor {name!r} is a {storage.kind}, which cannot be merged.")
        here = 0 if storage.start is None else len(storage.data) - storage.start
        if not 0 <= storage.count * storage.dtype.itemsize <= here or self.offset + self._reach > storage.count:
            raise InputError(f"The tensor {name!r} is not whole: the file does not hold all of its elements.")
        return TensorInfo(self.size, storage.dtype)

    def read(self) -> torch.Tensor:
        """The values, in memory of their own, with the strides they have in the file; call `info` before."""
        dtype, start = self.storage.dtype, self.storage.start
        assert dtype is not None
        assert start is not None
        if not self._reach:
            return torch.empty(self.size, dtype=dtype)
        begin = start + self.offset * dtype.itemsize
        values = bytearray(self.storage.data[begin : begin + self._reach * dtype.itemsize])
        return torch.frombuffer(values, dtype=dtype).as_strided(self.size, self.stride)

    @property
    def _reach(self) -> int:
        """Elements from the first to the last in the storage, both counted."""
        if 0 in self.size:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.size, self.stride, strict=True))


@dataclass(frozen=True)
class TorchFile:
    """What a file holds.

    Attributes:
        content: the object that was saved: plain containers, `StoredTensor`, `Storage`, and records for the rest.
        met: names by which the records were to be made.
        size: of the file in bytes.
    """

    content: Any
    met: tuple[Name, ...]
    size: int


def read_torch_file(path: Path) -> TorchFile:
    """Open a file that ``torch.save``, ``torch.jit.save`` or ``pickle.dump`` wrote.

    Raises:
        InputError: it cannot be read, is of no such kind, or is damaged.
    """
    if not path.exists():
        raise InputError(f"The file {str(path)!r} does not exist.")
    try:
        refuse_pointer(path)
        with path.open("rb") as handle:
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is empty"
        raise InputError(f"The file {str(path)!r} cannot be read: {reason}.") from None
    where, steps = str(path), itertools.count(1)

    def nested(content: Any) -> Any:
        """A storage that was pickled without torch: a file of its own inside the file."""
        if not isinstance(content, bytes):
            raise TypeError("a storage that is no bytes")
        return _read_stream(content, Machine(CALLS, where=where, steps=steps), where)

    machine = Machine({**CALLS, LOAD_FROM_BYTES: nested}, where=where, steps=steps)
    if data[:2] == b"PK":
        content = _read_zip(data, machine, path)
    elif data[257:262] == b"ustar":
        raise InputError(
            f"{str(path)!r} is a tar archive, as the first versions of torch wrote them; it is not read here."
        )
    else:
        content = _read_stream(data, machine, where)
    return TorchFile(content, tuple(machine.met), len(data))


def _read_zip(data: Buffer, machine: Machine, path: Path) -> Any:
    entries = _entries(data, path)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError(f"{str(path)!r} is a zip archive, but no file of torch.")
    root = pickles[0].removesuffix("data.pkl")
    start, stop = entries.get(f"{root}byteorder", (0, 0))
    if data[start:stop] not in (b"", b"little"):
        raise InputError(BIG_ENDIAN.format(str(path)))

    def storage(token: Any) -> Storage:
        kind, key, count = _storage_token(token)
        begin, end = entries.get(f"{root}data/{key}", (0, 0))
        found = _storage(kind, count, data, begin)
        if found.dtype is not None and count * found.dtype.itemsize > end - begin:
            raise ValueError(f"the storage {key!r} has {end - begin} bytes, too few for {count} elements")
        return found

    start, stop = entries[pickles[0]]
    return machine.run(Window(data[start:stop]), persistent=storage)


def _entries(data: Buffer, path: Path) -> dict[str, tuple[int, int]]:
    """Name to place of the content of each file in a zip archive that is neither compressed nor encrypted.

    Torch compresses nothing but the source code in a TorchScript archive.
    """
    found = {}
    try:
        with path.open("rb") as handle, zipfile.ZipFile(handle) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    continue
                # the archive's directory does not say how long the header before the content is
                name_size, extra_size = struct.unpack_from("<HH", data, entry.header_offset + 26)
                start = entry.header_offset + 30 + name_size + extra_size
                if start < 0 or start + entry.file_size > len(data):
                    raise ValueError("an entry reaches beyond the end")
                found[entry.filename] = (start, start + entry.file_size)
    # zipfile calls versions that it does not know not implemented
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise damaged(str(path), error) from None
    return found


def _read_stream(data: Buffer, machine: Machine, where: str) -> Any:
    """The stream format, or a plain pickle.

    The former is a row of pickles (a magic number, a version, facts of the system, the object, the keys of storages),
    then each storage as its count of elements and their bytes.
    """
    stream = Window(data)
    first = machine.run(stream)
    if first != STREAM_MAGIC:
        return first
    machine.run(stream)
    system = machine.run(stream)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise InputError(BIG_ENDIAN.format(where))
    storages: dict[str, Storage] = {}

    def persistent(token: Any) -> Any:
        if isinstance(token, tuple) and token[0] == "module":  # a class, with its source
            return token[1]
        kind, key, count = _storage_token(token)
        return storages.setdefault(key, _storage(kind, count, data))

    content = machine.run(stream, persistent=persistent)
    keys = machine.run(stream)
    place = stream.tell()
    for key in keys if isinstance(keys, list) else []:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.dtype is None:
            break  # its size is not known, so nothing behind it can be found
        counted = int.from_bytes(data[place : place + 8], "little", signed=True)
        if counted != storage.count or counted < 0:
            raise damaged(where, f"the storage {key!r} has {counted} elements, not {storage.count}")
        storage.start = place + 8
        place = storage.start + counted * storage.dtype.itemsize
    return content


def _storage_token(token: Any) -> tuple[Name, str, int]:
    """Kind, key and number of elements that a reference to a storage names."""
    match token:
        case ("storage", Name() as kind, str() as key, _, int() as count, *view) if not any(view):
            return kind, key, count
    raise ValueError("it refers to something outside itself that is no storage")


def _storage(kind: Name, count: int, data: Buffer, start: int | None = None) -> Storage:
    dtype = STORAGES.get(kind.name) if kind.module in ("torch", "torch.cuda") else None
    return Storage(dtype, str(kind), count, data, start)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    """``rest``: whether it needs gradients, hooks, and whether its values are to be conjugated or negated."""
    numbers = (offset, *size, *stride)
    plain = all(isinstance(number, int) and number >= 0 for number in numbers)
    if not isinstance(storage, Storage) or not plain or not len(size) == len(stride) <= MAX_DIMENSIONS or any(rest[2:]):
        raise ValueError("a tensor with impossible dimensions")
    return StoredTensor(storage, offset, tuple(size), tuple(stride))


def _typed_tensor(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor of a subclass, or with attributes."""
    return _tensor(*arguments) if function in TENSORS else Record(function, (kind, arguments))


def _parameter(data: Any, *rest: Any) -> Any:
    """``rest``: whether it needs gradients, hooks, attributes."""
    return data


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    """Old files hold the pairs here, newer ones set them afterwards."""
    return {plain_key(key): value for key, value in pairs}


def _set(values: Any = ()) -> set[Any]:
    return {plain_key(value) for value in values}


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    """As old protocols hold bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


TENSORS = (Name("torch._utils", "_rebuild_tensor"), Name("torch._utils", "_rebuild_tensor_v2"))

CALLS: Mapping[Name, Callable[..., Any]] = {
    **dict.fromkeys(TENSORS, _tensor),
    Name("torch._tensor", "_rebuild_from_type_v2"): _typed_tensor,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Name("torch", "Size"): lambda values=(): tuple(values),
    Name("collections", "OrderedDict"): _dict,
    Name("collections", "defaultdict"): lambda *_: {},
    Name("_codecs", "encode"): _bytes,
    Name("builtins", "set"): _set,
    Name("__builtin__", "set"): _set,
}
"""What stands for the functions that modules and state dicts are made of."""
