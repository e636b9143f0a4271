"""The interface of merges that make one task vector out of N, and the one loop over tensors that they all share.

What a merge gives is stored as a task matrix with a single column, so that it is scaled, evaluated, kept in the ledger
and exported like everything else: theta(c) = theta_pre + c v', with c = 1 the merge itself.

Shape suffixes: N models, P stored elements.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mergecore.checkpoints.checkpoint import DTYPES
from mergecore.errors import InputError
from mergecore.files import atomic_folder
from mergecore.merging import MERGES
from mergecore.options import PluginOptions, read_options
from mergecore.task_matrix import Layout, TaskMatrix, map_buffer, open_task_matrix, timed, write_layout

if TYPE_CHECKING:
    from mergecore.study import Study

FORMAT = 1
Progress = Callable[[int, int], None]


class Merge(ABC):
    """N task vectors -> one, tensor by tensor.

    Class attributes:
        Options: what ``options`` may say.
        version: raised whenever its numbers would change; part of the content key.
        needs_data: whether it looks at the data of the search, or at training data (never at held-out data).
        scales: factors of the merged task vector that are worth trying; validation data chooses among them.
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    version: ClassVar[int] = 1
    needs_data: ClassVar[bool] = False
    scales: ClassVar[tuple[float, ...]] = (1.0,)

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self, study: Study) -> None:  # noqa: B027
        """Raise ``InputError`` when this merge cannot be made of the study's models."""

    def tasks(self, study: Study) -> list[int]:
        """Indices into ``study.measured`` of the data that it looks at, where it ``needs_data``."""
        return study.search_tasks

    def prepare(self, study: Study, matrix: TaskMatrix, progress: Progress | None = None) -> None:  # noqa: B027
        """Look at whatever the merge needs (data, gradients, all tensors) before the first tensor is merged.

        Args:
            study: over ``matrix``.
            matrix: the task vectors as they are.
            progress: called with (steps done, steps in all).
        """

    @abstractmethod
    def tensor(self, deltas: torch.Tensor, base: torch.Tensor, *, name: str) -> torch.Tensor:
        """The merged difference of one tensor.

        Args:
            deltas: float32 [N, ...], the models' differences from the base; may be overwritten.
            base: float32 [...], the base's tensor.
            name: the tensor's name.

        Returns:
            float32 [...].
        """


def merge_study(
    study: Study, name: str, options: Mapping[str, Any] | None = None, *, progress: Progress | None = None
) -> Study:
    """The same tasks over the single column that a merge makes of the study's models; built, or found by content.

    Args:
        study: over the task vectors as they are (``merge.transform: none``).
        name: registered name of the merge.
        options: its options.
        progress: called with (steps done, steps in all) when it has to be built.

    Raises:
        InputError: unknown merge or option, or a merge that cannot be made of these models and tasks.
    """
    cls: type[Merge] = MERGES.get(name)
    merge = cls(read_options(cls.Options, options or {}, owner=f"The merge {name!r}", where="options"))
    merge.check(study)
    key = _content_key(study, name, merge)
    target = study.matrix_folder.parent / key
    if not target.is_dir():
        _build(target, study, name, merge, progress)
    return study.over(key, (name,))


def own_tasks(study: Study, merge: str) -> list[list[int]]:
    """For each model the tasks, as indices into ``study.measured``, that it was fine-tuned for.

    These are the tasks of the model's name, and those that are measured with its head.

    Raises:
        InputError: a model has no task of its own.
    """
    owned = list(zip(study.search_tasks, study.config.owners, strict=True))
    found = [[index for index, owner in owned if owner == n] for n in range(len(study.models))]
    without = next((model for model, own in zip(study.models, found, strict=True) if not own), None)
    if without is not None:
        raise InputError(
            f"The merge {merge!r} needs data that each model was fine-tuned for, but no task is called {without!r}.",
            "Give models and tasks the same names, or say 'head: <model>' at a task.",
        )
    return found


def _content_key(study: Study, name: str, merge: Merge) -> str:
    facts: list[object] = [FORMAT, study.matrix_key, name, merge.version, merge.options.model_dump()]
    facts.append(study.config.merge.storage)
    if merge.needs_data:
        items = [study.measured[i] for i in merge.tasks(study)]
        tasks = [(item.task.name, item.task.head) for item in items]
        facts += [tasks, [item.key for item in items], study.precision, study.device]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _build(target: Path, study: Study, name: str, merge: Merge, progress: Progress | None) -> None:
    matrix = open_task_matrix(study.matrix_folder, key=study.matrix_key, models=study.models)
    entries = tuple(replace(entry, dense=True, low_rank=False) for entry in matrix.layout.entries)
    layout = Layout((name,), entries, (0,))
    storage, report = DTYPES[study.config.merge.storage], _part(progress, 1)
    with atomic_folder(target) as temporary, timed(temporary):
        merge.prepare(study, matrix, _part(progress, 0))
        merged_P = map_buffer(temporary / "deltas.bin", layout.dense_length, storage, True)
        for index, entry in enumerate(entries):
            with torch.inference_mode():
                merged = merge.tensor(matrix.differences(index), matrix.base(index), name=entry.name).reshape(-1)
            if not torch.isfinite(merged).all():
                raise InputError(f"The merge {name!r} gives values that are not finite in the tensor {entry.name!r}.")
            merged_P[entry.offset : entry.offset + entry.size] = merged
            if report:
                report(index + 1, len(entries))
        for file in ("base.bin", "frozen.safetensors"):
            if (study.matrix_folder / file).is_file():
                _share(study.matrix_folder / file, temporary / file)
        write_layout(temporary, layout, base_storage=matrix.base_P.dtype, storage=storage, ranks={})


def _share(source: Path, target: Path) -> None:
    """The same file under another name, without a copy where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _part(progress: Progress | None, half: int) -> Progress | None:
    """One of two passes, each of which counts as half of the work."""
    if progress is None:
        return None
    return lambda done, count: progress(half * 1000 + round(1000 * done / max(count, 1)), 2000)
