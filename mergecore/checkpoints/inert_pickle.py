"""A pickle machine that imports nothing and calls nothing of what a file names.

A pickle is a programme for a small stack machine, and Python's own machine looks up any name and calls it. This one
builds plain containers; in the place of every other object it puts a `Record` of what the file said: by which name it
was to be made, from which arguments, with which state. What a record means is for the caller to decide.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, cast

from mergecore.errors import InputError

MAX_STEPS = 10_000_000
"""Steps of one file's machines, nested pickles included: a network's pickle has about 50 for each tensor."""

LONGEST = 100
"""Characters of a name's parts that messages show."""

MAX_LINE = 1 << 28
"""Bytes of a value that the oldest protocol ends by a line break."""

Buffer = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class as the file calls it; it may not even exist."""

    module: str
    name: str

    def __str__(self) -> str:
        text = f"{self.module[:LONGEST]}.{self.name[:LONGEST]}"
        return text if text.isprintable() else ascii(text)


@dataclass(eq=False, slots=True)
class Record:
    """An object that was not made.

    Attributes:
        made_by: the `Name` that was to be called, or whatever stood in its place.
        arguments: what it was to be called with.
        state: what the object was to be filled with afterwards.
        items: what was to be set on it by key.
        elements: what was to be appended to it.
    """

    made_by: Any
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    @property
    def attributes(self) -> dict[Any, Any]:
        """What would be the object's ``__dict__``; classes with slots have it in a pair."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return next((part for part in parts[:1] if isinstance(part, dict)), {})


def damaged(where: str, reason: object) -> InputError:
    """The error for a file that cannot be read."""
    return InputError(f"{where!r} is not a complete file of torch or pickle: {str(reason)[:200].rstrip('.')}.")


class Window:
    """A part of a buffer that reads like a file and never beyond what is there."""

    def __init__(self, data: Buffer, start: int = 0) -> None:
        self._data, self._place = data, start

    def read(self, count: int) -> bytes:
        """At most ``count`` bytes."""
        found = self._data[self._place : self._place + count]
        self._place += len(found)
        return found

    def readline(self) -> bytes:
        """Up to and including the next line break; without one where the line is longer than any should be."""
        end = self._data.find(b"\n", self._place, self._place + MAX_LINE)
        return self.read(MAX_LINE if end < 0 else end + 1 - self._place)

    def tell(self) -> int:
        """The place in the buffer."""
        return self._place


class Machine:
    """Runs pickles of one file.

    Args:
        calls: functions of ours, themselves inert, that stand for well-known names; all others become records.
        where: the file, for messages.
        steps: counts from 1 on, for all machines that work on the same file.
    """

    def __init__(self, calls: Mapping[Name, Callable[..., Any]], *, where: str, steps: Iterator[int]) -> None:
        self._calls, self._where, self._steps = calls, where, steps
        self.met: dict[Name, None] = {}
        """Names by which records were to be made, in order of appearance."""

    def run(self, stream: Window, *, persistent: Callable[[Any], Any] | None = None) -> Any:
        """What the next pickle of a stream builds.

        Args:
            stream: is left behind the pickle's end.
            persistent: what a reference to something outside the pickle means; without it there is none.

        Raises:
            InputError: it is damaged, truncated, or built to exhaust its reader.
        """
        stack: list[Any] = []
        marked: list[list[Any]] = []
        memo: dict[int, Any] = {}
        try:
            for operation, stated, _ in pickletools.genops(cast(IO[bytes], stream)):
                argument: Any = stated
                if next(self._steps) > MAX_STEPS:
                    raise InputError(f"{self._where!r} holds a pickle of more than {MAX_STEPS:,} steps.")
                match operation.name:
                    case "PROTO" | "FRAME":
                        pass
                    case "STOP":
                        return stack.pop()
                    case "MARK":
                        marked.append(stack)
                        stack = []
                    case "POP" if stack:
                        stack.pop()
                    case "POP" | "POP_MARK":
                        stack = marked.pop()
                    case "DUP":
                        stack.append(stack[-1])
                    case "PUT" | "BINPUT" | "LONG_BINPUT":
                        memo[argument] = stack[-1]
                    case "MEMOIZE":
                        memo[len(memo)] = stack[-1]
                    case "GET" | "BINGET" | "LONG_BINGET":
                        stack.append(memo[argument])
                    case "PERSID" | "BINPERSID":
                        token = stack.pop() if operation.name == "BINPERSID" else argument
                        stack.append(Record(None, (token,)) if persistent is None else persistent(token))
                    case "TUPLE" | "LIST" | "DICT" | "FROZENSET" | "APPENDS" | "SETITEMS" | "ADDITEMS" | "INST" | "OBJ":
                        stack, values = marked.pop(), stack
                        self._gathered(operation.name, argument, stack, values)
                    case name if name in _TAKES:
                        values = [stack.pop() for _ in range(_TAKES[name])][::-1]
                        self._applied(name, stack, values)
                    case name if name in _MAKES:
                        stack.append(_MAKES[name](argument))
                    case name:
                        raise ValueError(f"the operation {name} does not belong into a file")
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            # what a damaged stream does to a stack machine; nothing else runs in here
            raise damaged(self._where, error) from None
        raise AssertionError("genops ends with STOP or raises")

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call stands for: the result of our own function, or a record."""
        if not isinstance(arguments, tuple):
            raise TypeError("a call without arguments")
        if isinstance(function, Name):
            if function in self._calls:
                return self._calls[function](*arguments)
            self.met[function] = None
        return Record(function, arguments)

    def _gathered(self, name: str, argument: Any, stack: list[Any], values: list[Any]) -> None:
        """Operations on everything above the last mark."""
        match name:
            case "TUPLE":
                stack.append(tuple(values))
            case "LIST":
                stack.append(values)
            case "FROZENSET":
                stack.append({plain_key(value) for value in values})
            case "DICT":
                stack.append({})
                _set_items(stack[-1], values)
            case "SETITEMS":
                _set_items(stack[-1], values)
            case "APPENDS":
                _elements(stack[-1]).extend(values)
            case "ADDITEMS":
                stack[-1].update(plain_key(value) for value in values)
            case "INST":
                stack.append(self.call(_name(argument), tuple(values)))
            case "OBJ":
                stack.append(self.call(values[0], tuple(values[1:])))

    def _applied(self, name: str, stack: list[Any], values: list[Any]) -> None:
        """Operations on the last few values."""
        match name:
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(values))
            case "STACK_GLOBAL":
                module, own = values
                if not isinstance(module, str) or not isinstance(own, str):
                    raise TypeError("a name that is no text")
                stack.append(Name(module, own))
            case "REDUCE" | "NEWOBJ":
                stack.append(self.call(*values))
            case "NEWOBJ_EX":
                stack.append(self.call(values[0], (*values[1], values[2])))
            case "BUILD":
                if isinstance(stack[-1], Record):
                    stack[-1].state = values[0]
            case "SETITEM":
                _set_items(stack[-1], values)
            case "APPEND":
                _elements(stack[-1]).extend(values)


def _constant(value: Any) -> Any:
    return value


def _name(text: str) -> Name:
    module, _, name = text.partition(" ")
    return Name(module, name)


def _extension(number: int) -> Name:
    return Name("extension registry", str(number))


_TAKES = {
    "TUPLE1": 1,
    "TUPLE2": 2,
    "TUPLE3": 3,
    "STACK_GLOBAL": 2,
    "REDUCE": 2,
    "NEWOBJ": 2,
    "NEWOBJ_EX": 3,
    "BUILD": 1,
    "SETITEM": 2,
    "APPEND": 1,
}
"""Operations on the last values of the stack, and on how many."""

_MAKES: dict[str, Callable[[Any], Any]] = {
    **{
        operation.name: _constant
        for operation in pickletools.opcodes
        if operation.arg and not operation.stack_before and operation.stack_after not in ([], [pickletools.anyobject])
    },
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "EMPTY_SET": lambda _: set(),
    "GLOBAL": _name,
    "EXT1": _extension,
    "EXT2": _extension,
    "EXT4": _extension,
}
"""Operations that put something new on the stack."""


def plain_key(value: Any) -> Any:
    """A key of a dict or an element of a set; what is no name or number stands for itself only.

    To compare containers could take for ever, or more stack than there is.
    """
    return value if isinstance(value, (str, bytes, int, float, bool, Name, type(None))) else object()


def _set_items(target: Any, values: list[Any]) -> None:
    items = target.items if isinstance(target, Record) else target
    if not isinstance(items, dict) or len(values) % 2:
        raise TypeError("items for what has none")
    items.update(zip(map(plain_key, values[::2]), values[1::2], strict=True))


def _elements(target: Any) -> list[Any]:
    elements = target.elements if isinstance(target, Record) else target
    if not isinstance(elements, list):
        raise TypeError("elements for what has none")
    return elements
