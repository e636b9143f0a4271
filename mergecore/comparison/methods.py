"""What the methods of a comparison are made of, and what they gave.

Shape suffixes: N columns of a task matrix, T tasks, R preferences, P points of a front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mergecore.checkpoints.alignment import align
from mergecore.checkpoints.checkpoint import open_checkpoint
from mergecore.comparison.config import MethodConfig, ReferenceConfig
from mergecore.comparison.names import kind_of
from mergecore.config import StudyConfig
from mergecore.contenders import CONTENDERS
from mergecore.contenders.base import Contender, Field
from mergecore.contenders.constant import Soup
from mergecore.contenders.searched import Searched
from mergecore.contenders.task_arithmetic import TaskArithmetic
from mergecore.contenders.unloaded import Unloaded
from mergecore.fronts.indicators import preferences
from mergecore.merging import MERGES
from mergecore.merging.base import merge_study
from mergecore.pareto_moe.losses import RoutedStudy
from mergecore.pareto_moe.routed_study import Differentiate, route, train_routers
from mergecore.run_record import TaskInfo
from mergecore.search import SEARCHES, Search
from mergecore.study import Opened, Study, objectives_of, prepare
from mergecore.task_vectors import build_task_matrix
from mergecore.transforms import TRANSFORMS

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Points:
    """Merged models and what they measured.

    Attributes:
        coefficients: [R, N]; [R, T, N] where each task has a model of its own.
        predicted_RT: by surrogate; NaN where there is none.
        real_RT: on the data of the search; NaN where not measured.
        test_RT: on held-out data; NaN where not measured.
    """

    coefficients: np.ndarray
    predicted_RT: np.ndarray
    real_RT: np.ndarray
    test_RT: np.ndarray


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """What one method gave for one number of models.

    Attributes:
        method: its label.
        models: how many models were merged.
        bound: whether it is no merge but what merges are measured against.
        columns: names of the N coefficients.
        tasks: indices of its T tasks in `Comparison.tasks`.
        chosen: one point a preference, the equal one first.
        front: the front behind them with its verified points measured; None where there is no more than ``chosen``.
        evaluations: (coefficient vector, task) pairs that the choice took, on the data of the search.
        seconds: of these evaluations.
        build_seconds: of its task vectors; NaN when unknown.
        reason: why it gave nothing; everything else is empty then.
    """

    method: str
    models: int
    bound: bool = False
    columns: tuple[str, ...] = ()
    tasks: tuple[int, ...] = ()
    chosen: Points | None = None
    front: Points | None = None
    evaluations: int = 0
    seconds: float = 0.0
    build_seconds: float = float("nan")
    reason: str = ""


@dataclass(kw_only=True)
class Comparison:
    """Everything a comparison found.

    Attributes:
        name: of the study.
        models: names of all models.
        tasks: all tasks.
        preferences: number of models to [R, T], the equal preference first.
        worst: number of models and kind ("real", "test") to the worst of the single models on each task [T], the
            reference point of the hypervolume.
        own: likewise to the level of the fine-tuned models: on each task the model's own that was fine-tuned for it,
            and the best single model's on a task that no model was fine-tuned for.
        results: in the order of the methods, for 2, 3, … models.
        summary: figures of the whole run.
        config: the resolved configuration.
    """

    name: str
    models: list[str]
    tasks: list[TaskInfo]
    preferences: dict[int, np.ndarray] = field(default_factory=dict)
    worst: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    own: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    results: list[MethodResult] = field(default_factory=list)
    summary: dict[str, object] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)


def counts_of(config: StudyConfig) -> list[int]:
    """The numbers of models to compare for: those asked for, else from 2 to all as far as tasks belong to models."""
    models = len(config.models)
    if config.comparison.counts is not None:
        return sorted(set(config.comparison.counts))
    owned = None not in config.owners and len(set(config.owners)) == models
    return list(range(2, models + 1)) if owned else [models]


def preferences_of(config: StudyConfig) -> np.ndarray:
    """Equal preference, then those drawn: [1 + R, T]."""
    tasks = len(config.tasks)
    drawn_RT = preferences(
        config.comparison.preferences, tasks, generator=np.random.default_rng(config.comparison.seed)
    )
    return np.vstack([np.full(tasks, 1 / tasks), drawn_RT])


def scale_of(config: StudyConfig) -> str:
    """How metrics of several tasks are added up for a choice: as they are when they are of one kind."""
    return "none" if len({task.metric for task in config.tasks}) == 1 else "range"


def method_study(
    method: MethodConfig,
    plain: Study,
    opened: Opened,
    *,
    progress: Progress | None = None,
    differentiate: Callable[[RoutedStudy], Differentiate] | None = None,
) -> tuple[Study, Contender]:
    """The task vectors of a method, built or found by content, and the rule that chooses their coefficients.

    Args:
        method: what is compared.
        plain: the study over the task vectors as they are.
        opened: its checkpoints.
        progress: called with (steps done, steps in all) while task vectors are built.
        differentiate: gives who computes the gradients of a method that learns; this process when missing.

    Raises:
        InputError: the method cannot be used on these models and tasks.
        NumericalError: a training diverged.
    """
    kind = kind_of(method.method)
    if kind == "merge":
        study = merge_study(plain, method.method, method.options, progress=progress)
        return study, TaskArithmetic(_field(study, MERGES.get(method.method).scales))
    transform = method.method if kind == "transform" else method.transform
    study = _transformed(plain, opened, transform, method, progress)
    found = _field(study, TRANSFORMS.get(transform).scales())
    if kind == "transform":
        return study, TaskArithmetic(found)
    if kind == "rule":
        return study, CONTENDERS.get(method.method)(found)
    search = _search(method, study, found)
    if not search.learns:
        return study, Searched(found, search, study.config.front)
    routed = route(study, search.options)
    _, file = train_routers(
        routed,
        search.options,
        differentiate=differentiate(routed) if differentiate else None,
        on_step=(lambda training: progress(training.done, search.options.steps)) if progress else None,
    )
    study = study.routed(file)
    return study, Unloaded(_field(study, ()), search, study.config.front)


def reference_study(
    reference: ReferenceConfig, plain: Study, opened: Opened, *, progress: Progress | None = None
) -> tuple[Study, Contender]:
    """A model that is no merge, as the only column: c = 1 is the model itself.

    Raises:
        InputError: it does not fit the study's base.
    """
    config = plain.config
    checkpoint = open_checkpoint(reference.source, home=plain.home)
    alignment = align(
        opened.base, {reference.name: checkpoint}, heads=config.merge.heads, vocabulary=config.merge.vocabulary
    )
    matrix = build_task_matrix(
        plain.home / "task_matrices",
        alignment.base,
        alignment.models,
        storage=config.merge.storage,
        fingerprints=plain.home / "fingerprints",
        progress=progress,
    )
    study = plain.over(matrix.key, (reference.name,))
    return study, Soup(_field(study, (1.0,)))


def _field(study: Study, scales: tuple[float, ...]) -> Field:
    return Field(len(study.models), objectives_of(study.config), study.config.owners, scales)


def _transformed(
    plain: Study, opened: Opened, transform: str, method: MethodConfig, progress: Progress | None
) -> Study:
    if transform == "none":
        return plain
    merge = plain.config.merge.model_copy(update={"transform": transform, "options": dict(method.options)})
    config = plain.config.model_copy(update={"merge": merge})
    return prepare(config, plain.home, opened=opened, progress=progress)


def _search(method: MethodConfig, study: Study, found: Field) -> Search:
    """The study's own search options where they are for this method, in a box that suits the transform."""
    config, cls = study.config, SEARCHES.get(method.method)
    own = config.search if config.search.method == method.method else cls.Options(seed=config.search.seed)
    if method.search:
        own = cls.Options(**{**own.model_dump(exclude_unset=True), "method": method.method, **method.search})
    if "box" not in config.search.model_fields_set:
        own = own.model_copy(update={"box": (0.0, max(found.scales))})
    return cls(own, models=found.columns, objectives=found.objectives)
