"""Functions of the user's own, named in a config as "package.module:function"."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from mergecore.errors import InputError
from mergecore.files import file_digest


def import_callable(address: object, *, what: str) -> Callable[..., Any]:
    """The function behind an address; modules in the working folder are found too.

    Args:
        address: "package.module:function".
        what: begins the sentence of an error ("The task 'x'").

    Raises:
        InputError: not an address, not importable, or not callable.
    """
    if not isinstance(address, str) or address.count(":") != 1:
        raise InputError(f"{what} names no function: {address!r}.", "Write 'package.module:function'.")
    module_name, _, attribute = address.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{what}: cannot import {address!r}: {error}.") from None
    if not callable(function):
        raise InputError(f"{what}: {address!r} is not callable.")
    return function


def source_digest(function: Any) -> str:
    """Content of the file that holds the function; empty when there is none."""
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    return file_digest(Path(file)) if file and Path(file).is_file() else ""
