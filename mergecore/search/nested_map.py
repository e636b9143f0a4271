"""Nested-merging MAP: models are merged two by two, then the results (MAP, Appendix E.2, Algorithm 2).

Each merge of two is a MAP of its own in two coefficients, measured only on the tasks of its two sides. A merged model
is a linear combination of the models in it, so that everything stays one vector of N coefficients.

A transform changes the task vectors of all models once, before the first pair, so every merge on the way is linear and
no model on the way is ever written. Merges that are not linear make one column of all models and have no tree.

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
from mergecore.search.pairs import Goals, Group, Merge, Pair, merge_pair, pair_front, preferred_sums, record
from mergecore.surrogates import QuadraticFit
from mergecore.surrogates.least_squares import parameter_count

if TYPE_CHECKING:
    from mergecore.fronts.config import FrontConfig


class NestedMapOptions(SearchOptions):
    """``search:`` of the config for nested MAP."""

    method: Literal["nested_map"] = "nested_map"
    samples: int = Field(20, ge=6, description="Coefficient vectors for each pair.")
    order: Literal["closeness", "given", "clustering"] = Field(
        "closeness",
        description="Who is paired: the closest scores, neighbours in the config, or the closest metrics on all tasks.",
    )
    prefer: dict[str, float] = Field(default_factory=dict, description="Task to weight; default: all the same.")
    polish: int = Field(0, ge=0, description="Samples of a plain MAP around the result; 0: none.")
    polish_along: Literal["models", "groups"] = Field(
        "models", description="What it scales: every model, or the two groups that were merged last."
    )
    polish_width: float = Field(0.3, gt=0, le=1, description="Sides of its box, as a share of the search's.")


class NestedMapSearch(Search):
    """Asks level by level, all pairs of a level at once; what it does follows from what it was told, row by row.

    ``prefer`` says what is merged along the way. The front is that of the last pair, or of the polish. ``rounds`` has a
    `mergecore.search.pairs.record` for each pair as soon as its level was told.
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
        # a group of unwanted tasks has a metric too
        weight_T = np.maximum(np.array(weights) / sum(weights), 1e-9)
        self.goals = Goals(objectives, weight_T, self.bounds, self.options.seed)
        self._tree = _Tree(self)

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
        low, high = self.bounds
        sampled = {"closeness": tasks - aside, "clustering": 2 * (tasks - aside)} if low <= 0 and high >= 1 else {}
        singles = {"given": 0, "closeness": tasks, "clustering": self.models * tasks}[order] - sampled.get(order, 0)
        return singles + self.options.samples * _tasks_of_levels(sizes, order) + self.options.polish * tasks

    @property
    def wants_some(self) -> bool:
        """Those of the tasks of a pair."""
        return True

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the coefficients of a pair's two sides: the box that all models have in common."""
        return float(self.box_N2[:, 0].max()), float(self.box_N2[:, 1].min())

    def ask(self) -> np.ndarray:
        """Single models where the order needs them, then level after level, then the polish."""
        asked = self._tree.asked
        self.wanted_KT, self.label = asked.wanted_KT, asked.label
        return asked.coefficients_KN

    def tell(self, coefficients_KN: np.ndarray, metrics_KT: np.ndarray, noise_KT: np.ndarray | None = None) -> None:
        """Add evaluations; the pairs of a level are merged as soon as all of it was told."""
        super().tell(coefficients_KN, metrics_KT, noise_KT)
        self._tree.grow()

    def front(self, options: FrontConfig) -> Front:
        """The last pair's front over its two sides, or the polish's."""
        if self.options.polish:
            return self._tree.polish.front(self, options)
        last = self._tree.last
        points_P2, _ = pair_front(
            self.goals, last.pair, last.fits, population=options.population, generations=options.generations
        )
        order = np.argsort(last.pair.tasks)
        predicted_PT = np.stack([fit.surrogate.predict(points_P2) for fit in last.fits], axis=1)[:, order]
        kept = non_dominated(predicted_PT, maximise=self.objectives.maximise)
        unknown_PT = np.full((int(kept.sum()), len(order)), np.nan)
        return Front(last.pair.flat(points_P2)[kept], predicted_PT[kept], unknown_PT)

    def notes(self, *, workers: int = 1) -> list[str]:
        """A warning when the polish is under-determined; along groups the last pair's samples count too."""
        parameters, polish = parameter_count(self.models), self.options.polish
        if self.options.polish_along == "groups" or not 0 < polish < parameters:
            return []
        return [
            f"A polish by {polish} samples for a quadratic with {parameters} parameters: it may be worse than none."
        ]


@dataclass(frozen=True)
class _Asked:
    """Candidates [K, N], on which tasks [K, T] they are wanted, and what they are."""

    coefficients_KN: np.ndarray
    wanted_KT: np.ndarray
    label: str


class _Tree:
    """The tree of merges, grown level by level from what was told."""

    def __init__(self, search: NestedMapSearch) -> None:
        self._search = search
        self._used = 0  # rows told that finished steps took
        self._level = 0 if search.options.order == "given" else -1
        self._groups = [self._single(n) for n in range(search.models)]
        self._pairs: list[Pair] = []
        self._merges: list[Merge] = []
        self._polish: _Polish | None = None
        self.asked = self._step()

    @property
    def last(self) -> Merge:
        """The merge of all models."""
        if len(self._groups) > 1:
            raise InputError("Nested MAP has not reached its last pair.", "Tell it everything that it asks for.")
        return self._merges[-1]

    @property
    def polish(self) -> _Polish:
        """The polish of the last merge, fitted."""
        if self._polish is None or not self._polish.fits:
            raise InputError("Nested MAP has not polished its result.", "Tell it everything that it asks for.")
        return self._polish

    def grow(self) -> None:
        """Take in every step that was told in full."""
        search = self._search
        while (asked := len(self.asked.coefficients_KN)) and len(search.coefficients_KN) >= self._used + asked:
            metrics_KT = search.metrics_KT[self._used : self._used + asked]
            self._used += asked
            if self._level < 0:
                self._groups = [self._single(n, metrics_KT[n]) for n in range(search.models)]
            elif self._polish is not None:
                self._polish.fit(search, metrics_KT)
            else:
                self._merge(metrics_KT)
            self._level += 1
            self.asked = self._step()

    def _step(self) -> _Asked:
        """What is wanted next."""
        search, T = self._search, len(self._search.objectives.names)
        if self._level < 0:
            everywhere = search.options.order == "clustering"
            wanted = [[everywhere or t in group.tasks for t in range(T)] for group in self._groups]
            return _Asked(np.eye(search.models), np.array(wanted), "single models")
        if len(self._groups) > 1:
            self._pairs = self._new_pairs()
            samples = np.concatenate([pair.flat(pair.samples_K2) for pair in self._pairs])
            wanted = [[t in pair.tasks for t in range(T)] for pair in self._pairs for _ in pair.samples_K2]
            return _Asked(samples, np.array(wanted), f"level {self._level + 1}")
        if search.options.polish and self._polish is None:
            self._polish = _Polish.around(self._merges[-1], search, self._used)
            samples = self._polish.flat(self._polish.samples_KM)
            return _Asked(samples, np.ones((len(samples), T), dtype=bool), "polish")
        return _Asked(np.empty((0, search.models)), np.empty((0, T), dtype=bool), "")

    def _merge(self, metrics_KT: np.ndarray) -> None:
        """All pairs of a level, [K, T] the metrics of their samples one pair after the other."""
        search, merged, start = self._search, [], 0
        for pair in self._pairs:
            stop = start + len(pair.samples_K2)
            merge = merge_pair(search.goals, pair, metrics_KT[start:stop, list(pair.tasks)])
            merged.append(self._group(merge))
            self._merges.append(merge)
            search.rounds.append(record(search.goals, merge, self._level + 1))
            start = stop
        paired = {id(group) for pair in self._pairs for group in (pair.first, pair.second)}
        self._groups = [group for group in self._groups if id(group) not in paired] + merged

    def _group(self, merge: Merge) -> Group:
        pair, chosen = merge.pair, slice(merge.chosen, merge.chosen + 1)
        return Group(
            models=pair.first.models + pair.second.models,
            tasks=pair.tasks,
            name=pair.name,
            coefficients_N=pair.flat(merge.points_P2[chosen])[0],
            score=float(preferred_sums(self._search.goals, pair, merge.groups_P2[chosen])[0]),
            metrics_T=(pair.first.metrics_T + pair.second.metrics_T) / 2,
        )

    def _new_pairs(self) -> list[Pair]:
        search, merges = self._search, len(self._merges)
        found = []
        for number, (i, j) in enumerate(self._matching()):
            seed = (search.options.seed * 1009 + merges) * 1009 + number
            box = [search.bounds] * 2
            # later pairs know base and sides from earlier ones
            samples = sample("sobol", search.options.samples, box=box, seed=seed, anchors=merges == 0)
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
        goals = search.objectives
        tasks = tuple(t for t, owner in enumerate(goals.owners) if owner == n)
        known_T = np.full(len(goals.names), np.nan)
        if metrics_T is not None:
            known_T = search.goals.gains(metrics_T, tuple(range(len(metrics_T))))
        weights = search.goals.weights(tasks)
        score = float(known_T[list(tasks)] @ weights / weights.sum())
        return Group((n,), tasks, search.goals.names([n])[0], np.eye(search.models)[n], score, known_T)


@dataclass
class _Polish:
    """A plain MAP around a merge, along some directions of coefficient space.

    Attributes:
        directions_MN: unit vectors for models, both sides for groups.
        box_M2: of the coefficients of the directions.
        samples_KM: what is evaluated.
        known: coefficients [K, M] along the directions and metrics [K, T] from before; NaN where not measured. Along
            models that is everything that was told, along groups the last pair's samples.
        fits: surrogates of all tasks, once it was told.
    """

    directions_MN: np.ndarray
    box_M2: np.ndarray
    samples_KM: np.ndarray
    known: tuple[np.ndarray, np.ndarray]
    fits: tuple[QuadraticFit, ...] = ()

    @classmethod
    def around(cls, merge: Merge, search: NestedMapSearch, told: int) -> _Polish:
        """In a box that is as near to the merge as the search's box allows; so many rows were told before."""
        options, pair = search.options, merge.pair
        if options.polish_along == "groups":
            directions_MN, limits_M2 = pair.sides_2N, np.array([search.bounds] * 2)
            centre_M = merge.points_P2[merge.chosen]
            known = pair.samples_K2, merge.metrics_KT[:, np.argsort(pair.tasks)]
        else:
            directions_MN, limits_M2 = np.eye(search.models), search.box_N2
            centre_M = pair.flat(merge.points_P2)[merge.chosen]
            known = search.coefficients_KN[:told], search.metrics_KT[:told]
        low_M, high_M = limits_M2.T
        half_M = 0.5 * options.polish_width * (high_M - low_M)
        centre_M = np.clip(centre_M, low_M + half_M, high_M - half_M)
        box_M2 = np.stack([centre_M - half_M, centre_M + half_M], axis=1)
        samples = sample("sobol", options.polish, box=box_M2, seed=options.seed, anchors=False)
        return cls(directions_MN, box_M2, samples, known)

    def flat(self, coefficients_KM: np.ndarray) -> np.ndarray:
        """Coefficients of all models, [K, N]."""
        return coefficients_KM @ self.directions_MN

    def fit(self, search: NestedMapSearch, metrics_KT: np.ndarray) -> None:
        """Take in the metrics of the samples."""
        known_KM, known_KT = self.known
        fits: list[QuadraticFit] = []
        for t, metrics_K in enumerate(metrics_KT.T):
            measured = np.isfinite(known_KT[:, t])
            coefficients_KM = np.vstack([known_KM[measured], self.samples_KM])
            fits += search.goals.fit(coefficients_KM, np.append(known_KT[measured, t], metrics_K)[:, None], [t])
        self.fits = tuple(fits)

    def front(self, search: NestedMapSearch, options: FrontConfig) -> Front:
        """The front in its box."""
        from mergecore.fronts.optimise import optimise_front

        points_PM, predicted_PT = optimise_front(
            [fit.surrogate for fit in self.fits],
            box=self.box_M2,
            maximise=search.objectives.maximise,
            algorithm=options.algorithm,
            population=options.population,
            generations=options.generations,
            seed=search.options.seed,
        )
        along_models = search.options.polish_along == "models"
        fits = self.fits if along_models else ()  # a front's surrogates are functions of the models' coefficients
        return Front(self.flat(points_PM), predicted_PT, np.full_like(predicted_PT, np.nan), fits)


def _tasks_of_levels(sizes: list[int], order: str) -> int:
    """Tasks that each sample is measured on, all levels together, by the groups' numbers of tasks; at most."""
    found, smallest = 0, min(sizes)
    while len(sizes) > 1:
        aside = sizes[-1:] if len(sizes) % 2 else []
        found += sum(sizes) - (sum(aside) if order == "given" else smallest * len(aside))
        paired = sizes[: len(sizes) - len(aside)]
        sizes = aside + [i + j for i, j in zip(paired[::2], paired[1::2], strict=True)]
    return found
