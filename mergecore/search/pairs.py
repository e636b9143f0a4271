"""Two groups of models merged by a MAP of their own, in two coefficients (MAP, Appendix E.2).

Shape suffixes: K samples, N models, T tasks, P points of a front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergecore.plain import plain
from mergecore.search.base import Objectives
from mergecore.surrogates import QuadraticFit, fit_quadratic

POPULATION, GENERATIONS = 60, 60
"""Of the fronts on the way, which are two-dimensional."""


@dataclass(frozen=True)
class Goals:
    """What all pairs have in common.

    Attributes:
        objectives: of all tasks.
        weight_T: of the tasks, above zero, summing to 1.
        bounds: of the coefficients of a pair's two sides.
        seed: of the optimiser.
    """

    objectives: Objectives
    weight_T: np.ndarray
    bounds: tuple[float, float]
    seed: int

    def gains(self, metrics_KT: np.ndarray, tasks: Sequence[int]) -> np.ndarray:
        """Metrics of some tasks, [K, len(tasks)], turned so that more is better."""
        return metrics_KT * np.where(self.objectives.maximise, 1.0, -1.0)[list(tasks)]

    def weights(self, tasks: Sequence[int]) -> np.ndarray:
        """Of some tasks."""
        return self.weight_T[list(tasks)]

    def alike(self, tasks: Sequence[int]) -> bool:
        """Whether the metrics of some tasks are of one kind, so that they can be added."""
        o = self.objectives
        return len({(o.lower[t], o.upper[t], o.maximise[t]) for t in tasks}) == 1

    def names(self, models: Sequence[int]) -> list[str]:
        """Of some models; their numbers where they have none."""
        return [self.objectives.models[n] if self.objectives.models else str(n) for n in models]

    def fit(
        self, coefficients_KM: np.ndarray, metrics_KT: np.ndarray, tasks: Sequence[int]
    ) -> tuple[QuadraticFit, ...]:
        """A surrogate for each of some tasks, whose metrics are [K, len(tasks)]."""
        lower, upper = self.objectives.lower, self.objectives.upper
        return tuple(
            fit_quadratic(coefficients_KM, metrics_K, lower=lower[t], upper=upper[t])
            for t, metrics_K in zip(tasks, metrics_KT.T, strict=True)
        )


@dataclass(frozen=True)
class Group:
    """Some of the models, merged.

    Attributes:
        models: their numbers, in the order of the tree.
        tasks: indices of the tasks they were fine-tuned for.
        name: such as ``"(a+d)"``.
        coefficients_N: of the merge; zero for other models.
        score: its preference-weighted metric, better is larger; NaN when unknown.
        metrics_T: mean of its models' metrics on all tasks, better is larger, for clustering; NaN when unknown.
    """

    models: tuple[int, ...]
    tasks: tuple[int, ...]
    name: str
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
    def name(self) -> str:
        """Of the merge."""
        return f"({self.first.name}+{self.second.name})"

    @property
    def tasks(self) -> tuple[int, ...]:
        """Of both sides."""
        return self.first.tasks + self.second.tasks

    @property
    def sides_2N(self) -> np.ndarray:
        """Coefficients of all models in each side."""
        return np.stack([self.first.coefficients_N, self.second.coefficients_N])

    def flat(self, coefficients_P2: np.ndarray) -> np.ndarray:
        """Coefficients of all models, [P, N]."""
        return coefficients_P2 @ self.sides_2N


@dataclass(frozen=True)
class Merge:
    """A pair with what its samples said.

    Attributes:
        pair: what was merged.
        metrics_KT: of its samples, on its tasks.
        fits: the surrogates of its tasks.
        points_P2: front, as coefficients of the two sides.
        groups_P2: front, as metrics of the two sides.
        chosen: the point with the best preference-weighted sum.
    """

    pair: Pair
    metrics_KT: np.ndarray
    fits: tuple[QuadraticFit, ...]
    points_P2: np.ndarray
    groups_P2: np.ndarray
    chosen: int


def merge_pair(goals: Goals, pair: Pair, metrics_KT: np.ndarray) -> Merge:
    """MAP in two coefficients, from the metrics [K, len(tasks)] of a pair's samples on its tasks."""
    fits = goals.fit(pair.samples_K2, metrics_KT, pair.tasks)
    points_P2, groups_P2 = pair_front(goals, pair, fits, population=POPULATION, generations=GENERATIONS)
    return Merge(pair, metrics_KT, fits, points_P2, groups_P2, int(preferred_sums(goals, pair, groups_P2).argmax()))


def preferred_sums(goals: Goals, pair: Pair, groups_P2: np.ndarray) -> np.ndarray:
    """The metrics of a pair's sides as means over all their tasks, [P], weighted by preference."""
    shares_2 = np.array([goals.weights(side.tasks).sum() for side in (pair.first, pair.second)])
    return np.asarray(groups_P2 @ shares_2 / shares_2.sum())


def pair_front(
    goals: Goals, pair: Pair, fits: tuple[QuadraticFit, ...], *, population: int, generations: int
) -> tuple[np.ndarray, np.ndarray]:
    """The front of a pair's two group metrics on the surrogates of its tasks: [P, 2] coefficients, [P, 2] metrics."""
    from mergecore.fronts.optimise import optimise_front  # pymoo takes a second to import

    def groups(points_P2: np.ndarray) -> np.ndarray:
        metrics_PT = np.stack([fit.surrogate.predict(points_P2) for fit in fits], axis=1)
        return group_metrics(goals, pair, fits, metrics_PT)

    return optimise_front(
        groups,
        box=[goals.bounds] * 2,
        maximise=(True, True),
        population=population,
        generations=generations,
        seed=goals.seed,
    )


def group_metrics(goals: Goals, pair: Pair, fits: tuple[QuadraticFit, ...], metrics_KT: np.ndarray) -> np.ndarray:
    """Of a pair's two sides, [K, 2], better is larger: means of each side's metrics, weighted by preference.

    Where metrics are of different kinds, each is measured by its spread over the pair's samples.
    """
    ends = len(pair.first.tasks)
    spread = 1.0 if goals.alike(pair.tasks) else np.array([float(np.std(fit.observed)) or 1.0 for fit in fits])
    gains_KT, weights_T = goals.gains(metrics_KT, pair.tasks) / spread, goals.weights(pair.tasks)
    sides = slice(0, ends), slice(ends, None)
    return np.stack([gains_KT[:, side] @ weights_T[side] / weights_T[side].sum() for side in sides], axis=1)


def record(goals: Goals, merge: Merge, level: int) -> dict[str, Any]:
    """What a merge of some level, from 1, found, as JSON values:

    ====================  ==================================================================================
    ``level``             as given
    ``name``              of the merge, such as ``"(a+(b+c))"``
    ``sides``             for both: ``name``, ``models`` in it, ``tasks``
    ``samples``           ``coefficients`` of the sides [K, 2], ``metrics`` of the tasks of both sides in order, and
                          ``groups`` [K, 2], the metrics of the sides
    ``evaluations``       (coefficients, task) pairs
    ``surrogates``        task to what was fitted, and how far to trust it
    ``front``             ``coefficients`` [P, 2] and ``groups`` [P, 2], predicted
    ``chosen``            row of the front
    ``coefficients``      of the sides, chosen [2]
    ``flat``              model to its coefficient in the merge
    ``unit``              of ``groups``: "metric", "loss" (turned, so that more is better) or "spread" of mixed metrics
    ====================  ==================================================================================
    """
    names, pair = goals.objectives.names, merge.pair
    flat_N = pair.flat(merge.points_P2)[merge.chosen]
    models = sorted(pair.first.models + pair.second.models)
    up = goals.objectives.maximise[pair.tasks[0]]
    found = {
        "level": level,
        "name": pair.name,
        "sides": [
            {"name": side.name, "models": goals.names(side.models), "tasks": [names[t] for t in side.tasks]}
            for side in (pair.first, pair.second)
        ],
        "samples": {
            "coefficients": pair.samples_K2,
            "metrics": merge.metrics_KT,
            "groups": group_metrics(goals, pair, merge.fits, merge.metrics_KT),
        },
        "evaluations": len(pair.samples_K2) * len(pair.tasks),
        "surrogates": {names[t]: fit.to_dict() for t, fit in zip(pair.tasks, merge.fits, strict=True)},
        "front": {"coefficients": merge.points_P2, "groups": merge.groups_P2},
        "chosen": merge.chosen,
        "coefficients": merge.points_P2[merge.chosen],
        "flat": dict(zip(goals.names(models), flat_N[models], strict=True)),
        "unit": ("metric" if up else "loss") if goals.alike(pair.tasks) else "spread",
    }
    json_values: dict[str, Any] = plain(found, finite=True)
    return json_values
