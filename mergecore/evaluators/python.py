"""A measurement of the user's own: ``package.module:function``."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from mergecore.callables import import_callable, source_digest
from mergecore.data import locate_data
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Context, Evaluator, Measurement
from mergecore.files import file_digest

if TYPE_CHECKING:
    from mergecore.config import DatasetConfig, TaskConfig


class PythonCallable(Evaluator):
    """Calls ``function(candidate, **args)``.

    ``args.function`` is the address ``package.module:function``, looked up on the import path and in the working
    folder. Every other key of ``args`` is passed by keyword; when the task names a dataset, so are ``dataset`` (the
    path of its file) and ``split``. The function returns a number, the task's metric, or a mapping of metrics to
    numbers. It is imported only because the config names it.
    """

    metrics: ClassVar[tuple[str, ...] | None] = None
    version: ClassVar[int] = 1
    needs_network: ClassVar[bool] = False

    def __init__(self, task: TaskConfig, dataset: DatasetConfig | None, context: Context) -> None:
        arguments = dict(task.args)
        address = arguments.pop("function", None)
        self._task = task
        if address is None:
            raise InputError(
                f"The task {task.name!r}: the python evaluator needs args.function.", "Write 'package.module:function'."
            )
        self._function = import_callable(address, what=f"The task {task.name!r}")
        self._source = source_digest(self._function)
        self._data_digest = ""
        if dataset is not None:
            file = locate_data(dataset.path, context.home)
            self._data_digest = file_digest(file)
            arguments |= {"dataset": str(file), "split": dataset.split}
        self._arguments = arguments
        self._address = address
        try:
            with suppress(ValueError):  # a built-in function may not tell its signature
                inspect.signature(self._function).bind(None, **arguments)
        except TypeError as error:
            raise InputError(f"The task {task.name!r}: {address} cannot be called with these args: {error}.") from None
        try:
            json.dumps(arguments)
        except TypeError as error:
            raise InputError(f"The task {task.name!r}: args must be plain values: {error}.") from None

    @property
    def key(self) -> str:
        """Content key of address, arguments, data and the text of the module that holds the function."""
        arguments = {name: value for name, value in self._arguments.items() if name != "dataset"}
        facts = ["python", self.version, self._address, self._source, self._data_digest, arguments]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def examples(self) -> int:
        """Unknown to us."""
        return 0

    def evaluate(self, candidate: Candidate) -> Measurement:
        """Call the function; what it returns must contain the task's metric."""
        result = self._function(candidate, **self._arguments)
        found = result if isinstance(result, Mapping) else {self._task.metric: result}
        if self._task.metric not in found:
            raise InputError(f"{self._address} returned {sorted(found)}, but not the metric {self._task.metric!r}.")
        return Measurement({str(name): float(value) for name, value in found.items()}, {})
