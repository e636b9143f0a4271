"""Nested-merging MAP: models are merged two by two, then the results (MAP, Appendix E.2, Algorithm 2).

Each merge of two is a MAP of its own in two coefficients, measured only on the tasks of its two sides. A merged model
is a linear combination of the models in it, so that everything stays one vector of N coefficients.

With K samples a pair, a level that merges models of S tasks in all costs K · S (coefficients, task) evaluations. With
one task a model that is K · N · log2(N) in all where N is a power of two. Where a level has an odd group, one passes it
for nothing, and is the first to be paired on the next in the given order: N = 3, 5, 6, 7, 9 cost 5, 12, 16, 20, 29
times K. The order by closeness knows the single models before; they are samples of the first level, but for one that
passes it, which costs an evaluation more.

Shape suffixes: K samples, N models, T tasks, P points of a front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mergecore.errors import InputError
from mergecore.fronts.dominance import non_dominated
from mergecore.registry import did_you_mean
from mergecore.sampling import sample
from mergecore.search.base import Front, Objectives, Search, SearchOptions
from mergecore.surrogates import QuadraticFit, fit_quadratic

if TYPE_CHECKING:
    from mergecore.config import FrontConfig

POPULATION, GENERATIONS = 60, 60
"""Of the fronts on the way, which are two-dimensional."""


class NestedMapOptions(SearchOptions):
    """``search:`` of the config for nested MAP."""

    method: Literal["nested_map"] = "nested_map"
    samples: int = Field(20, ge=6, description="Coefficient vectors for each pair.")
    order: Literal["closeness", "given", "clustering"] = Field(
        "closeness",
        description="Who is paired: the closest scores, neighbours in the config, or the closest metrics on all tasks.",
    )
    prefer: dict[str, float] = Field(default_factory=dict, description="Task to weight; default: all the same.")
    polish: int = Field(0, ge=0, description="Samples of a plain MAP in a small box around the result; 0: none.")
    polish_width: float = Field(0.3, gt=0, le=1, description="Side of that box, as a share of the search's.")


@dataclass(frozen=True)
class Group:
    """Some of the models, merged.

    Attributes:
        name: such as ``"(0+3)"``.
        tasks: indices of the tasks its models were fine-tuned for.
        coefficients_N: of its merge; zero for other models.
        score: its preference-weighted metric, better is larger; NaN when unknown.
        metrics_T: mean of its models' metrics on all tasks, better is larger, for clustering; NaN when unknown.
    """

    name: str
    tasks: tuple[int, ...]
    coefficients_N: np.ndarray
    score: float
    metrics_T: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Two groups to be merged, and the samples of that: [K, 2]."""

    first: Group
    second: Group
    samples_K2: np.ndarray

    @property
    def tasks(self) -> tuple[int, ...]:
        """Of both sides."""
        return self.first.tasks + self.second.tasks

    def flat(self, coefficients_P2: np.ndarray) -> np.ndarray:
        """Coefficients of all models, [P, N]."""
        return coefficients_P2 @ np.stack([self.first.coefficients_N, self.second.coefficients_N])


class NestedMapSearch(Search):
    """Asks level by level, all pairs of a level at once; what it does follows from what it was told, row by row.

    ``prefer`` says what is merged along the way. The front is that of the last pair, or of the polish.
    """

    Options: ClassVar[type[SearchOptions]] = NestedMapOptions
    divisible: ClassVar[bool] = False
    takes_estimates: ClassVar[bool] = False
    options: NestedMapOptions

    def __init__(self, options: Any, *, models: int, objectives: Objectives) -> None:
        super().__init__(options, models=models, objectives=objectives)
        unknown = next((name for name in self.options.prefer if name not in objectives.names), None)
        if unknown is not None:
            raise InputError(f"search.prefer names no task {unknown!r}.", did_you_mean(unknown, objectives.names))
        if set(objectives.owners) != set(range(models)):
            raise InputError(
                "Nested MAP needs a task for each model, and a model for each task.",
                "Give models and tasks the same names, or say 'head: <model>' at a task.",
            )
        weights = [self.options.prefer.get(name, 0.0 if self.options.prefer else 1.0) for name in objectives.names]
        if min(weights) < 0 or not np.isfinite(weights).all() or not any(weights):
            raise InputError("search.prefer must be weights from 0, not all of them zero.")
        self._weight_T = np.maximum(
            np.array(weights) / sum(weights), 1e-9
        )  # a group of unwanted tasks has a metric too
        self._sign_T = np.where(objectives.maximise, 1.0, -1.0)
        self._replay = _Replay(self)

    @property
    def budget(self) -> int:
        """Coefficient vectors in all; fewer are evaluated where singles are known from before the first level."""
        first = 0 if self.options.order == "given" else self.models
        return first + self.options.samples * (self.models - 1) + self.options.polish

    @property
    def pairs(self) -> int:
        """At most: the same where no level has an odd group, or the order is given."""
        tasks, order = len(self.objectives.names), self.options.order
        sizes = [self.objectives.owners.count(n) for n in range(self.models)]
        aside = min(sizes) if self.models % 2 else 0  # of the model that may pass the first level
        low, high = _bounds(self)
        sampled = {"closeness": tasks - aside, "clustering": 2 * (tasks - aside)} if low <= 0 and high >= 1 else {}
        singles = {"given": 0, "closeness": tasks, "clustering": self.models * tasks}[order] - sampled.get(order, 0)
        return singles + self.options.samples * _tasks_of_levels(sizes, order) + self.options.polish * tasks

    def ask(self) -> np.ndarray:
        """Single models where the order needs them, then level after level, then the polish."""
        found, self.wanted_KT = self._replay.next()
        return found

    def front(self, options: FrontConfig) -> Front:
        """The last pair's front over its two sides, or the polish's."""
        from mergecore.fronts.optimise import optimise_front  # pymoo takes a second to import

        self._replay.next()
        goals = self.objectives
        if self.options.polish and self._replay.polish_fits:
            fits = self._replay.polish_fits
            coefficients_PN, predicted_PT = optimise_front(
                [fit.surrogate for fit in fits],
                box=self._replay.polish_box(),
                maximise=goals.maximise,
                algorithm=options.algorithm,
                population=options.population,
                generations=options.generations,
                seed=self.options.seed,
            )
            return Front(coefficients_PN, predicted_PT, np.full_like(predicted_PT, np.nan), fits)
        last, fits = self._replay.last
        points_P2, _ = pair_front(self, last, fits, population=options.population, generations=options.generations)
        order = np.argsort(last.tasks)
        predicted_PT = np.stack([fit.surrogate.predict(points_P2) for fit in fits], axis=1)[:, order]
        kept = non_dominated(predicted_PT, maximise=goals.maximise)
        return Front(last.flat(points_P2)[kept], predicted_PT[kept], np.full((int(kept.sum()), len(order)), np.nan))

    def gains(self, metrics_KT: np.ndarray, tasks: tuple[int, ...]) -> np.ndarray:
        """Metrics of some tasks, [K, len(tasks)], turned so that more is better."""
        return metrics_KT * self._sign_T[list(tasks)]

    def weights(self, tasks: tuple[int, ...]) -> np.ndarray:
        """Of some tasks; those of all sum to 1."""
        return self._weight_T[list(tasks)]


def pair_front(
    search: NestedMapSearch, pair: Pair, fits: tuple[QuadraticFit, ...], *, population: int, generations: int
) -> tuple[np.ndarray, np.ndarray]:
    """The front of a pair's two group metrics on the surrogates of its tasks.

    Returns:
        [P, 2] coefficients of its two sides, and [P, 2] group metrics, better is larger: means of each side's metrics,
        weighted by preference, each scaled by its spread over the samples where metrics are of different kinds.
    """
    from mergecore.fronts.optimise import optimise_front

    sizes = len(pair.first.tasks), len(pair.second.tasks)
    sides = slice(0, sizes[0]), slice(sizes[0], sum(sizes))
    goals = search.objectives
    alike = len({(goals.lower[t], goals.upper[t], goals.maximise[t]) for t in pair.tasks}) == 1
    spread = np.array([1.0 if alike else float(np.std(fit.observed)) or 1.0 for fit in fits])

    def groups(points_P2: np.ndarray) -> np.ndarray:
        metrics = np.stack([fit.surrogate.predict(points_P2) for fit in fits], axis=1)
        gains = search.gains(metrics, pair.tasks) / spread
        weights = search.weights(pair.tasks)
        return np.stack([gains[:, side] @ weights[side] / weights[side].sum() for side in sides], axis=1)

    return optimise_front(
        groups,
        box=[_bounds(search)] * 2,
        maximise=(True, True),
        population=population,
        generations=generations,
        seed=search.options.seed,
    )


class _Replay:
    """What was told, gone through level by level; finished levels are kept."""

    def __init__(self, search: NestedMapSearch) -> None:
        self._search = search
        self._used = 0  # rows told that finished steps took
        self._started = search.options.order == "given"
        self._groups = [self._single(n) for n in range(search.models)]
        self._pairs: list[Pair] = []
        self._finished: list[tuple[Pair, tuple[QuadraticFit, ...]]] = []
        self.polish_fits: tuple[QuadraticFit, ...] = ()
        self._polished = False

    @property
    def last(self) -> tuple[Pair, tuple[QuadraticFit, ...]]:
        """The pair at the top of the tree, with the surrogates of its tasks."""
        if len(self._groups) > 1:
            raise InputError("Nested MAP has not reached its last pair.", "Tell it everything that it asks for.")
        return self._finished[-1]

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """What is to be evaluated next [K, N], and on which tasks [K, T]; take in what was told so far."""
        search = self._search
        while True:
            asked_KN, wanted_KT = self._step()
            if not len(asked_KN) or len(search.coefficients_KN) < self._used + len(asked_KN):
                return asked_KN, wanted_KT
            rows = slice(self._used, self._used + len(asked_KN))
            self._used += len(asked_KN)
            self._finish(search.metrics_KT[rows])

    def polish_box(self) -> np.ndarray:
        """[N, 2], around the merge of all models."""
        search = self._search
        low_N, high_N = search.box_N2.T
        half_N = 0.5 * search.options.polish_width * (high_N - low_N)
        centre_N = np.clip(self._groups[0].coefficients_N, low_N + half_N, high_N - half_N)
        return np.stack([centre_N - half_N, centre_N + half_N], axis=1)

    def _step(self) -> tuple[np.ndarray, np.ndarray]:
        search, tasks = self._search, len(self._search.objectives.names)
        if not self._started:
            everywhere = search.options.order == "clustering"
            wanted = [[everywhere or t in group.tasks for t in range(tasks)] for group in self._groups]
            return np.eye(search.models), np.array(wanted)
        if len(self._groups) > 1:
            if not self._pairs:
                self._pairs = self._new_pairs()
            asked = np.concatenate([pair.flat(pair.samples_K2) for pair in self._pairs])
            wanted = [[t in pair.tasks for t in range(tasks)] for pair in self._pairs for _ in pair.samples_K2]
            return asked, np.array(wanted)
        if search.options.polish and not self._polished:
            seed = search.options.seed
            asked = sample("sobol", search.options.polish, box=self.polish_box(), seed=seed, anchors=False)
            return asked, np.ones((len(asked), tasks), dtype=bool)
        return np.empty((0, search.models)), np.empty((0, tasks), dtype=bool)

    def _finish(self, metrics_KT: np.ndarray) -> None:
        if not self._started:
            self._started = True
            self._groups = [self._single(n, metrics_KT[n]) for n in range(self._search.models)]
        elif len(self._groups) > 1:
            self._finish_level(metrics_KT)
        else:
            self._polished = True
            goals = self._search.objectives
            told_KN = self._search.coefficients_KN[self._used - len(metrics_KT) : self._used]
            self.polish_fits = tuple(
                fit_quadratic(told_KN, metrics_KT[:, t], lower=goals.lower[t], upper=goals.upper[t])
                for t in range(len(goals.names))
            )

    def _finish_level(self, metrics_KT: np.ndarray) -> None:
        search, goals, merged = self._search, self._search.objectives, []
        for number, pair in enumerate(self._pairs):
            rows = slice(number * len(pair.samples_K2), (number + 1) * len(pair.samples_K2))
            fits = tuple(
                fit_quadratic(pair.samples_K2, metrics_KT[rows, t], lower=goals.lower[t], upper=goals.upper[t])
                for t in pair.tasks
            )
            points_P2, groups_P2 = pair_front(search, pair, fits, population=POPULATION, generations=GENERATIONS)
            shares = np.array([search.weights(side.tasks).sum() for side in (pair.first, pair.second)])
            sums_P = groups_P2 @ shares / shares.sum()
            best = int(sums_P.argmax())
            name = f"({pair.first.name}+{pair.second.name})"
            flat_N = pair.flat(points_P2[best : best + 1])[0]
            metrics_T = (pair.first.metrics_T + pair.second.metrics_T) / 2
            merged.append(Group(name, pair.tasks, flat_N, float(sums_P[best]), metrics_T))
            self._finished.append((pair, fits))
            search.rounds.append(_record(search, pair, fits, points_P2, groups_P2, best, flat_N))
        paired = {id(group) for pair in self._pairs for group in (pair.first, pair.second)}
        self._groups = [group for group in self._groups if id(group) not in paired] + merged
        self._pairs = []

    def _new_pairs(self) -> list[Pair]:
        search, level = self._search, len(self._finished)
        found = []
        for number, (i, j) in enumerate(self._matching()):
            seed = (search.options.seed * 1009 + level) * 1009 + number
            box = [_bounds(search)] * 2
            # later pairs know base and sides from earlier ones
            samples = sample("sobol", search.options.samples, box=box, seed=seed, anchors=level == 0)
            found.append(Pair(self._groups[i], self._groups[j], samples))
        return found

    def _matching(self) -> list[tuple[int, int]]:
        """Pairs of groups; an odd one is left out."""
        groups, order = self._groups, self._search.options.order
        if order == "given":
            return [(i, i + 1) for i in range(0, len(groups) - 1, 2)]
        places = [[g.score] if order == "closeness" else g.metrics_T for g in groups]
        distance = np.linalg.norm(np.array(places)[:, None] - np.array(places), axis=2)
        distance[np.tril_indices(len(groups))] = np.inf
        distance = np.where(np.isnan(distance), np.finfo(float).max, distance)
        found = []
        for _ in range(len(groups) // 2):
            i, j = np.unravel_index(int(distance.argmin()), distance.shape)
            found.append((int(i), int(j)))
            distance[[i, j]], distance[:, [i, j]] = np.inf, np.inf
        return found

    def _single(self, n: int, metrics_T: np.ndarray | None = None) -> Group:
        search = self._search
        tasks = tuple(t for t, owner in enumerate(search.objectives.owners) if owner == n)
        known_T = np.full(len(search.objectives.names), np.nan)
        if metrics_T is not None:
            known_T = search.gains(metrics_T, tuple(range(len(metrics_T))))
        weights = search.weights(tasks)
        score = float(known_T[list(tasks)] @ weights / weights.sum())
        return Group(str(n), tasks, np.eye(search.models)[n], score, known_T)


def _tasks_of_levels(sizes: list[int], order: str) -> int:
    """Tasks that each sample is measured on, all levels together, by the groups' numbers of tasks; at most."""
    found, smallest = 0, min(sizes)
    while len(sizes) > 1:
        aside = sizes[-1:] if len(sizes) % 2 else []
        found += sum(sizes) - (sum(aside) if order == "given" else smallest * len(aside))
        paired = sizes[: len(sizes) - len(aside)]
        sizes = aside + [i + j for i, j in zip(paired[::2], paired[1::2], strict=True)]
    return found


def _bounds(search: NestedMapSearch) -> tuple[float, float]:
    """Of the coefficients of a pair's two sides: the box that all models have in common."""
    return float(search.box_N2[:, 0].max()), float(search.box_N2[:, 1].min())


def _record(
    search: NestedMapSearch,
    pair: Pair,
    fits: tuple[QuadraticFit, ...],
    points_P2: np.ndarray,
    groups_P2: np.ndarray,
    best: int,
    flat_N: np.ndarray,
) -> dict[str, Any]:
    """What a pair found, as JSON values."""
    names = search.objectives.names
    return {
        "pair": [pair.first.name, pair.second.name],
        "tasks": [[names[t] for t in side.tasks] for side in (pair.first, pair.second)],
        "evaluations": len(pair.samples_K2) * len(pair.tasks),
        "surrogates": {names[t]: fit.surrogate.to_dict() for t, fit in zip(pair.tasks, fits, strict=True)},
        "front": {"coefficients": points_P2.tolist(), "groups": groups_P2.tolist()},
        "chosen": best,
        "coefficients": flat_N.tolist(),
    }
