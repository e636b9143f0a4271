"""A front as one model: each question comes with a preference, whose network is merged when it is first wanted.

The folder that `write_front` fills is all that `ServedFront` needs, on any machine, and nothing in it is pickled:

======================  ==================================================================================
``front.json``          tasks, the front's coefficients and metrics, what each task's answers need
``task_matrix/``        base and task vectors; hard links where the file system allows them
``routers.safetensors`` trained routers, where the front is theirs
``base/``, ``heads/``   heads that are not merged, with config and tokenizer files
``tasks/``              arrays of the predictors
======================  ==================================================================================

Shapes: P points of the front, N models, T tasks.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mergecore.config_file import parse_config
from mergecore.data.tokenizers import TOKENIZER_FILES
from mergecore.errors import InputError, listed
from mergecore.evaluation import CandidateEvaluator
from mergecore.evaluators.base import Candidate, Context
from mergecore.export import COMPANIONS
from mergecore.files import atomic_write, read_json_mapping, usable_cores
from mergecore.fronts.interpolate import interpolated_coefficients
from mergecore.heads import StoredHead
from mergecore.measured import Measured
from mergecore.plain import to_json
from mergecore.predictors import PREDICTORS, Predictor
from mergecore.registry import did_you_mean
from mergecore.run_record import RunRecord
from mergecore.study import Study

FORMAT = 1
FACTS, MATRIX, ROUTERS, BASE = "front.json", "task_matrix", "routers.safetensors", "base"
KEPT = 3
"""Merged networks that are kept by default; each is a whole candidate in memory."""

Preference = Mapping[str, float] | Sequence[float] | np.ndarray


@dataclass(frozen=True)
class FrontPoints:
    """The points of a front that preferences choose among.

    Attributes:
        coefficients_PN: of each point.
        metrics_PT: by which it is chosen: predicted where there are surrogates, as `mergecore.pick` does.
        maximise: for each task, whether more is better.
        scale: of `mergecore.fronts.choose.by_preference`.
    """

    coefficients_PN: np.ndarray
    metrics_PT: np.ndarray
    maximise: tuple[bool, ...]
    scale: Any

    def coefficients(self, preference_T: np.ndarray) -> np.ndarray:
        """[N] for a preference on the simplex (`mergecore.fronts.interpolate`)."""
        return interpolated_coefficients(
            preference_T,
            coefficients_PN=self.coefficients_PN,
            metrics_PT=self.metrics_PT,
            maximise=self.maximise,
            scale=self.scale,
        )


def front_points(record: RunRecord) -> FrontPoints:
    """The front of a finished run whose candidates have scaling coefficients.

    Raises:
        InputError: no point has all its metrics.
    """
    predicted = record.front_metrics("predicted")
    metrics_PT = record.front_metrics("real") if np.isnan(predicted).all() else predicted
    complete_P = np.isfinite(metrics_PT).all(axis=1)
    if not complete_P.any():
        raise InputError("No point of this front has all its metrics.")
    return FrontPoints(
        record.front_coefficients()[complete_P],
        metrics_PT[complete_P],
        tuple(task.maximise for task in record.tasks),
        "none" if len({task.metric for task in record.tasks}) == 1 else "range",
    )


def answering_tasks(study: Study) -> list[Measured]:
    """The tasks whose inputs a front of this study answers, in their order.

    Raises:
        InputError: there is none.
    """
    items = [item for item in study.measured if item.role == "search"]
    answering = [item for item in items if item.task.evaluator in PREDICTORS]
    if not answering:
        kinds = listed(sorted({item.task.evaluator for item in items}))
        raise InputError(f"No task of this study answers new inputs: its evaluators are {kinds}.")
    return answering


def write_front(study: Study, points: FrontPoints | None, folder: Path) -> None:
    """Write everything that `ServedFront` needs.

    Args:
        study: the prepared study; with routers where the front is theirs.
        points: the front; None where the study has routers.
        folder: where to; it is created, and must not exist.

    Raises:
        InputError: no task's evaluator answers new inputs.
    """
    answering = answering_tasks(study)
    folder.mkdir(parents=True)
    _copy_companions(study.base_folder, folder / BASE)
    shutil.copytree(study.matrix_folder, folder / MATRIX, copy_function=_link)
    if study.routers is not None:
        shutil.copyfile(study.routers, folder / ROUTERS)
    heads = {name: _write_head(head, folder, number) for number, (name, head) in enumerate(study.heads.items())}
    described = {item.task.name: _write_task(item, folder, number) for number, item in enumerate(answering)}
    shown = {"name", "base", "architecture", "models", "tasks"}
    facts = {
        "format": FORMAT,
        "mergecore": version("mergecore"),
        "config": study.config.model_dump(mode="json", include=shown),
        "models": study.models,
        "matrix_key": study.matrix_key,
        "precision": study.precision,
        "routed": study.routers is not None,
        "front": None if points is None else vars(points),
        "heads": heads,
        "tasks": [task.name for task in study.config.tasks],
        "answering": described,
    }
    atomic_write(folder / FACTS, to_json(facts))


@dataclass
class _Network:
    """A merged candidate.

    Attributes:
        weights_P: a copy; None while it is the one in the buffer.
        prepared: what a task's predictor computed once for it.
    """

    weights_P: torch.Tensor | None = None
    prepared: dict[str, Any] = field(default_factory=dict)


class ServedFront:
    """Answers to inputs, by the network for a preference.

    One network is alive at a time, in one buffer; the last ones used are kept beside it. Calls from several threads
    wait for one another.

    Args:
        folder: that `write_front` filled.
        kept: merged networks in memory, the one alive included.
        threads: torch threads of this process; default: all cores.

    Attributes:
        tasks: names of the T entries of a preference.
        merges: how many networks were merged so far.

    Raises:
        InputError: the folder is no served front, or that of another version.
    """

    def __init__(self, folder: Path, *, kept: int = KEPT, threads: int | None = None) -> None:
        facts = read_json_mapping(folder / FACTS)
        if facts.get("format") != FORMAT:
            raise InputError(f"{str(folder)!r} is no front that this version of mergecore serves.", "Write it again.")
        if kept < 1:
            raise InputError(f"The front is to keep {kept} networks, but it needs one.")
        self.tasks: tuple[str, ...] = tuple(facts["tasks"])
        self.merges = 0
        self._study = _open_study(facts, folder)
        self._points = _open_points(facts["front"])
        self._evaluator = CandidateEvaluator(self._study, threads=threads or usable_cores())
        self._predictors = {
            name: _open_predictor(name, found, folder, self._study) for name, found in facts["answering"].items()
        }
        self._heads = {name: found["head"] for name, found in facts["answering"].items()}
        self._kept, self._lock = kept, threading.RLock()
        self._networks: OrderedDict[bytes, _Network] = OrderedDict()  # by coefficients, the last used at the end
        self._alive: bytes | None = None  # the one in the buffer

    @property
    def answering(self) -> tuple[str, ...]:
        """Names of the tasks whose inputs are answered."""
        return tuple(self._predictors)

    def preference(self, preference: Preference | None = None) -> np.ndarray:
        """[T], as it counts: sums to 1; all tasks alike when missing.

        Args:
            preference: task to weight, tasks left out count as 0; or one weight a task, in order.

        Raises:
            InputError: an unknown task, a wrong length, a weight that is negative or not finite, nothing above 0.
        """
        count = len(self.tasks)
        if preference is None:
            return np.full(count, 1 / count)
        if isinstance(preference, Mapping):
            unknown = next((name for name in preference if name not in self.tasks), None)
            if unknown is not None:
                raise InputError(f"This front has no task {unknown!r}.", did_you_mean(unknown, self.tasks))
            preference = [preference.get(name, 0.0) for name in self.tasks]
        try:
            r_T = np.asarray(preference, dtype=np.float64)
        except (ValueError, TypeError):
            raise InputError("A preference is one number a task.") from None
        if r_T.shape != (count,):
            raise InputError(
                f"A preference of {r_T.size} numbers for {count} tasks.", f"Give one each for {', '.join(self.tasks)}."
            )
        with np.errstate(over="ignore"):
            total = r_T.sum()
        if not np.isfinite(total) or (r_T < 0).any():
            raise InputError(f"The preference {r_T.tolist()} has an entry that is negative or not finite.")
        if not total:
            raise InputError("At least one preference must be above 0.")
        return r_T / total + 0.0  # no negative zero, so that equal preferences have equal bits

    def coefficients(self, preference: Preference | None = None) -> np.ndarray:
        """What is merged for a preference: coefficients [N] of the front, or for routers the preference [T] itself.

        Raises:
            InputError: as for `preference`.
        """
        r_T = self.preference(preference)
        return r_T if self._points is None else self._points.coefficients(r_T)

    def predict(self, inputs: Any, preference: Preference | None = None, task: str | None = None) -> pd.DataFrame:
        """One row for each input; columns as the task's predictor says (`mergecore.predictors`).

        Args:
            inputs: images as arrays, texts, or pairs of texts.
            preference: as for `preference`.
            task: whose inputs they are, whose head and classes answer; default: the first that answers.

        Raises:
            InputError: as for `preference`; an unknown task; inputs that do not suit it.
        """
        predictor = self._predictor(task)
        with self.network(preference, predictor.task) as (candidate, prepared):
            return predictor.predict(candidate, prepared, inputs)

    @contextmanager
    def network(self, preference: Preference | None = None, task: str | None = None) -> Iterator[tuple[Candidate, Any]]:
        """The network for a preference with one task's head, and what its predictor prepared; others wait meanwhile.

        Raises:
            InputError: as for `predict`.
        """
        predictor, c_N = self._predictor(task), self.coefficients(preference)
        with self._lock:
            network = self._merged(c_N)
            candidate = self._evaluator.candidate(c_N, self._heads[predictor.task])
            if predictor.task not in network.prepared:
                network.prepared[predictor.task] = predictor.prepare(candidate)
            yield candidate, network.prepared[predictor.task]

    def _merged(self, c_N: np.ndarray) -> _Network:
        """Put the network with these coefficients into the buffer: merged, copied back, or there already."""
        key, buffer_P = c_N.tobytes(), self._evaluator.weights_P
        if self._alive == key:
            return self._networks[key]
        network = self._networks.pop(key, None)
        while len(self._networks) >= self._kept:
            self._networks.popitem(last=False)
        if self._alive is not None and self._alive in self._networks:
            self._networks[self._alive].weights_P = buffer_P.clone()
        self._alive = None  # should what follows fail, the buffer is nobody's
        if network is None or network.weights_P is None:
            network = _Network()
            self._evaluator.merge(c_N)
            self.merges += 1
        else:
            buffer_P.copy_(network.weights_P)
            network.weights_P = None
        self._networks[key], self._alive = network, key
        return network

    def _predictor(self, task: str | None) -> Predictor:
        if task is None:
            return next(iter(self._predictors.values()))
        if task not in self._predictors:
            raise InputError(f"No task {task!r} of this front answers inputs.", did_you_mean(task, self.answering))
        return self._predictors[task]


def _link(source: str, target: str) -> None:
    """A hard link, which costs nothing, or else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _copy_companions(source: Path | None, target: Path) -> bool:
    """Copy config, tokenizer and processor files; whether there were any."""
    if source is None:
        return False
    found = [name for name in dict.fromkeys((*COMPANIONS, *TOKENIZER_FILES)) if (source / name).is_file()]
    if not found:
        return False
    target.mkdir(parents=True)
    for name in found:
        shutil.copyfile(source / name, target / name)
    return True


def _write_head(head: StoredHead, folder: Path, number: int) -> dict[str, Any]:
    place = folder / "heads" / str(number)
    place.mkdir(parents=True)
    if head.file.is_file():
        shutil.copyfile(head.file, place / "head.safetensors")
    described = _copy_companions(head.folder, place / "network")
    return {
        "number": number,
        "source": head.source,
        "digest": head.digest,
        "body": head.body,
        "classes": head.classes,
        "described": described,
    }


def _write_task(item: Measured, folder: Path, number: int) -> dict[str, Any]:
    place = folder / "tasks" / str(number)
    place.mkdir(parents=True)
    facts = PREDICTORS.get(item.task.evaluator).describe(item, place)
    return {
        "number": number,
        "evaluator": item.task.evaluator,
        "head": item.head,
        "architecture": item.context.architecture,
        "classes": item.context.classes,
        "facts": facts,
    }


def _open_study(facts: Mapping[str, Any], folder: Path) -> Study:
    """The study as far as merging and building networks need it; its data is not there."""
    config = parse_config(facts["config"], where=str(folder / FACTS))
    return Study(
        config=config,
        home=folder,
        models=tuple(facts["models"]),
        matrix_folder=folder / MATRIX,
        matrix_key=facts["matrix_key"],
        base_folder=folder / BASE if (folder / BASE).is_dir() else None,
        heads={name: _open_head(found, folder) for name, found in facts["heads"].items()},
        measured=(),
        device="cuda" if torch.cuda.is_available() else "cpu",
        precision=facts["precision"],
        fingerprints={},
        routers=folder / ROUTERS if facts["routed"] else None,
    )


def _open_head(found: Mapping[str, Any], folder: Path) -> StoredHead:
    place = folder / "heads" / str(int(found["number"]))
    network = place / "network" if found["described"] else None
    return StoredHead(
        found["source"], place / "head.safetensors", found["digest"], found["body"], network, found["classes"]
    )


def _open_points(found: Mapping[str, Any] | None) -> FrontPoints | None:
    if found is None:
        return None
    coefficients_PN, metrics_PT = (np.array(found[key], dtype=np.float64) for key in ("coefficients_PN", "metrics_PT"))
    return FrontPoints(coefficients_PN, metrics_PT, tuple(found["maximise"]), found["scale"])


def _open_predictor(task: str, found: Mapping[str, Any], folder: Path, study: Study) -> Predictor:
    head = study.heads[found["head"]] if found["head"] is not None else None
    context = Context(
        folder,
        base=study.config.base,
        base_folder=study.base_folder,
        head_folder=head.folder if head is not None else None,
        architecture=found["architecture"],
        classes=found["classes"],
    )
    cls = PREDICTORS.get(found["evaluator"])
    predictor: Predictor = cls(task, found["facts"], folder / "tasks" / str(int(found["number"])), context)
    return predictor
