"""Files that hold a whole pickled module become safetensors, and nothing of what they hold is run.

A pickled module is a programme that rebuilds it; to open one the usual way is to run whatever its author put in.
`mergecore.checkpoints.torch_files` reads the programme instead of running it. What is looked for in the result is what
``module.state_dict()`` would give.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergecore.checkpoints.checkpoint import STATE_KEYS, TensorInfo, write_safetensors
from mergecore.checkpoints.inert_pickle import Name, Record
from mergecore.checkpoints.torch_files import StoredTensor, TorchFile, read_torch_file
from mergecore.errors import InputError
from mergecore.files import atomic_file

MAX_ENTRIES = 5_000_000
"""Parameters, buffers and modules, counted in every place where they stand."""

MAX_TENSORS = 100_000
MAX_NAME = 500
"""Characters of a tensor's name, those of all modules around it included."""

MAX_SPREAD = 8
"""How much larger than its file the tensors may be: views of the same bytes are written one by one."""

SMALL = 1 << 26
"""Bytes of tensors that any file may hold."""

WRAPPERS = (
    Name("torch.nn.parallel.data_parallel", "DataParallel"),
    Name("torch.nn.parallel.distributed", "DistributedDataParallel"),
)


@dataclass(frozen=True)
class Conversion:
    """What was found and written.

    Attributes:
        out: the file that was written.
        tensors: how many.
        parameters: numbers in them, buffers' included.
        bytes: of all tensors.
        classes: what the file wanted to have made; none of it was imported or run.
    """

    out: Path
    tensors: int
    parameters: int
    bytes: int
    classes: tuple[str, ...]


def convert(path: Path, out: Path) -> Conversion:
    """Write the state dict inside a file of ``torch.save`` or ``pickle.dump`` as safetensors.

    Parameters and persistent buffers have the names, shapes, dtypes and bits of ``module.state_dict()``, without the
    prefix of a `DataParallel` around it; where two names share a tensor, both are written. What a class would do in its
    own ``state_dict`` or ``__setstate__`` is not done.

    Args:
        path: a pickled module or state dict, or a training checkpoint that holds one under a usual key.
        out: the file to write; it appears whole or not at all.

    Raises:
        InputError: there are no such tensors, the file is damaged or built to exhaust its reader, or ``out`` exists.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{str(out)!r} does not end in .safetensors, the format that is written.")
    if out.exists():
        raise InputError(f"{str(out)!r} already exists.", "Name another file.")
    if path.suffix == ".safetensors":
        raise InputError(f"{str(path)!r} is a safetensors file already.", "Name it in the config as it is.")
    file = read_torch_file(path)
    tensors = find_tensors(file, str(path))
    infos = {name: tensor.info(name) for name, tensor in tensors.items()}
    _check_size(infos, file.size, str(path))
    try:
        with atomic_file(out) as temporary:
            write_safetensors(temporary, infos, lambda name: tensors[name].read())
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be written: {error.strerror}.") from None
    sizes = [math.prod(info.shape) for info in infos.values()]
    total = sum(size * info.dtype.itemsize for size, info in zip(sizes, infos.values(), strict=True))
    return Conversion(out, len(infos), sum(sizes), total, tuple(map(str, file.met)))


def find_tensors(file: TorchFile, where: str) -> dict[str, StoredTensor]:
    """Name to tensor of the state dict or module in a file.

    Args:
        file: the opened file.
        where: its name, for messages.

    Raises:
        InputError: there is none, or a parameter is stored in a way that is not read here.
    """
    for key in (None, *STATE_KEYS):
        content = _unwrapped(file.content if key is None else _items(file.content).get(key))
        state = _items(content)
        if state and all(isinstance(value, StoredTensor) for value in state.values()):
            return _named(state.items(), where)
        if _is_module(content):
            return _named(_state_dict(content, where), where)
    found = ", ".join(map(repr, list(_items(file.content))[:5])) or _title(file.content)
    raise InputError(
        f"{where!r} holds no module and no state dict (a mapping of names to tensors).", f"It holds: {found}."
    )


def _named(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, tensor in pairs:
        if not isinstance(tensor, StoredTensor):
            raise InputError(
                f"The part {name[:MAX_NAME]!r} of {where!r} was stored by {_title(tensor)}, which is not read here."
            )
        if len(name) > MAX_NAME or not name.isprintable() or name == "__metadata__":
            raise InputError(f"{name[:40]!r} in {where!r} is no name for a tensor.")
        found[name] = tensor
        if len(found) > MAX_TENSORS:
            raise InputError(f"{where!r} holds more than {MAX_TENSORS:,} tensors.")
    if not found:
        raise InputError(f"The module in {where!r} has no parameters.")
    return found


def _state_dict(module: Record, where: str) -> Iterator[tuple[str, Any]]:
    """What ``module.state_dict()`` holds, in its order: parameters, persistent buffers, then the modules inside."""
    members = functools.cache(_members)  # a module may stand in many places
    waiting, entries = [("", module)], 0
    while waiting:
        prefix, module = waiting.pop()
        own, inside = members(module)
        entries += 1 + len(own) + len(inside)
        if entries > MAX_ENTRIES:
            raise InputError(f"The modules in {where!r} have more than {MAX_ENTRIES:,} entries.")
        if len(prefix) > MAX_NAME:
            raise InputError(f"The modules in {where!r} are nested too deeply, or one contains itself.")
        yield from ((prefix + name, tensor) for name, tensor in own.items())
        waiting += [(f"{prefix}{name}.", part) for name, part in reversed(inside.items())]


def _members(module: Record) -> tuple[dict[str, Any], dict[str, Record]]:
    """What a module holds itself by name, and the modules inside it."""
    attributes = _items(module.attributes)
    if _is_script(module):
        own = {name: value for name, value in attributes.items() if isinstance(value, StoredTensor)}
        return own, {name: value for name, value in attributes.items() if _is_script(value)}
    passing = attributes.get("_non_persistent_buffers_set")
    buffers, inside = _items(attributes.get("_buffers")), _items(attributes["_modules"])
    own = _items(attributes["_parameters"]) | {
        name: value for name, value in buffers.items() if not (isinstance(passing, set) and name in passing)
    }
    modules = {name: value for name, value in inside.items() if _is_module(value)}
    own |= {name: value for name, value in inside.items() if name not in modules}  # for `_named` to refuse
    return {name: value for name, value in own.items() if value is not None}, modules


def _unwrapped(value: Any) -> Any:
    """The module inside those that only spread its work over devices."""
    if isinstance(value, Record) and value.made_by in WRAPPERS:
        return _items(value.attributes.get("_modules")).get("module", value)
    return value


def _is_module(value: Any) -> bool:
    return isinstance(value, Record) and ({"_parameters", "_modules"} <= value.attributes.keys() or _is_script(value))


def _is_script(value: Any) -> bool:
    """Whether it is a module of TorchScript, whose parameters, buffers and modules are all plain attributes."""
    return isinstance(value, Record) and str(value.made_by).startswith("__torch__.")


def _items(value: Any) -> dict[str, Any]:
    """What a dict, or an object of a class derived from it, holds by name; nothing for anything else."""
    found = value.items if isinstance(value, Record) else value
    return {name: inner for name, inner in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}


def _title(value: Any) -> str:
    if isinstance(value, StoredTensor):
        return "one tensor"
    return str(value.made_by) if isinstance(value, Record) and isinstance(value.made_by, Name) else type(value).__name__


def _check_size(infos: dict[str, TensorInfo], file_bytes: int, where: str) -> None:
    total = sum(math.prod(info.shape) * info.dtype.itemsize for info in infos.values())
    if total > max(SMALL, MAX_SPREAD * file_bytes):
        raise InputError(
            f"The tensors in {where!r} would take {total / 1e9:.1f} GB, {MAX_SPREAD} times the file's size and more."
        )
