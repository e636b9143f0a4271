"""Is there a trade-off at all? The detector that MAP misses in its own list of limitations.

Shape suffixes: K samples, P points of a front, T objectives, R preferences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from mergecore.errors import InputError
from mergecore.fronts.dominance import non_dominated, to_minimise
from mergecore.fronts.indicators import preferences

Verdict = Literal["trade-off", "no trade-off", "single point", "noise only"]

PREFERENCES = 1000
SERVED_BY_ONE = 0.95
NOISE_OF_A_DIFFERENCE = 1.96 * np.sqrt(2.0)
"""Two evaluations that differ by less than this many standard errors of one do not differ at the 5 % level."""
SIGNAL_OVER_NOISE = 1.5
"""Samples whose standard deviation is below this many standard errors of one evaluation show nothing but noise."""
SMALL_SHARE = 0.01
"""Where the noise is unknown, this share of the samples' range counts as no difference."""


@dataclass(frozen=True)
class Diagnosis:
    """What samples and front say about the trade-off. Plain values, ready for JSON; NaN where undefined.

    Attributes:
        verdict: "single point": the front has one. "noise only": its points, or all samples, differ by no more than
            evaluation noise. "no trade-off": one point is as good as the best on every task, or serves 95 % of the
            preferences. "trade-off": none of these.
        sentence: the finding in plain words.
        correlation: [T, T], Pearson, of the objectives over the samples, each turned so that more is better: negative
            where two tasks compete. NaN for an objective that does not vary, 1 on the diagonal.
        served_by_one: largest share of 1000 random preferences (Dirichlet(1), each objective scaled to [0, 1] over
            the front) for which one and the same point is the best.
        spread: [T], range of the front on each objective, in the metric's unit.
        spread_in_noise: [T], the same in standard errors of one evaluation; NaN where those are unknown.
        best_single: [T], metrics of the point that serves the most preferences.
    """

    verdict: Verdict
    sentence: str
    correlation: list[list[float]]
    served_by_one: float
    spread: list[float]
    spread_in_noise: list[float]
    best_single: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summary.json."""
        return asdict(self)


def diagnose(
    samples_KT: ArrayLike,
    front_PT: ArrayLike,
    *,
    maximise: Sequence[bool],
    noise_T: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Say whether a front is a trade-off, a single point, or nothing but noise.

    Args:
        samples_KT: evaluated metrics, for correlation and signal; incomplete rows are ignored, K = 0 is fine.
        front_PT: metrics of the front; incomplete and dominated rows are ignored.
        maximise: for each objective, whether more is better.
        noise_T: standard error of one evaluation on each task; None, or NaN, where unknown.
        names: of the tasks, for the sentence.
        seed: of the random preferences.

    Raises:
        InputError: no complete row in the front, negative noise, or shapes that do not fit.
    """
    tasks = len(maximise)
    sampled_KT = -to_minimise(samples_KT, maximise=maximise)
    sampled_KT = sampled_KT[np.isfinite(sampled_KT).all(axis=1)]
    points_PT = -to_minimise(front_PT, maximise=maximise)
    points_PT = points_PT[non_dominated(points_PT, maximise=[True] * tasks)]
    if not len(points_PT):
        raise InputError("No point of this front has all its metrics.", "Evaluate its points first.")
    error_T = np.full(tasks, np.nan) if noise_T is None else np.asarray(noise_T, dtype=np.float64)
    if error_T.shape != (tasks,) or (error_T < 0).any():
        raise InputError(f"Noise {error_T.tolist()} is not one standard error for each of {tasks} tasks.")
    titles = [f"task {t + 1}" for t in range(tasks)] if names is None else list(names)
    if len(titles) != tasks:
        raise InputError(f"{len(titles)} names do not go with {tasks} tasks.")

    spread_T = np.ptp(points_PT, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread_in_noise_T = spread_T / error_T
    scaled_PT = (points_PT - points_PT.min(axis=0)) / np.where(spread_T > 0, spread_T, 1.0)
    wanted_RT = preferences(PREFERENCES, tasks, generator=np.random.default_rng(seed))
    served_P = np.bincount((wanted_RT @ scaled_PT.T).argmax(axis=1), minlength=len(points_PT)) / PREFERENCES
    best = int(served_P.argmax())
    correlation_TT = _correlation(sampled_KT)
    loss_T = _least_loss(points_PT, _tolerance(sampled_KT, error_T))

    if len(points_PT) == 1:
        verdict: Verdict = "single point"
        sentence = "One merged model is the best on every task at once, so there is nothing to choose between."
    elif _is_noise(sampled_KT, spread_T, error_T):
        verdict = "noise only"
        sentence = (
            "The points differ by no more than repeated evaluations of one model would; "
            "evaluate on more data before reading a trade-off into them."
        )
    elif loss_T is not None:
        verdict = "no trade-off"
        sentence = (
            "The tasks do not compete: one point is, on every task, as good as the best of the front to within "
            f"{loss_T.max():.2g}."
        )
    elif served_P[best] >= SERVED_BY_ONE:
        verdict = "no trade-off"
        sentence = f"The tasks hardly compete: one point is the best for {served_P[best]:.0%} of all preferences."
    else:
        verdict = "trade-off"
        sentence = (
            f"The tasks compete: along the front they change by {_range(spread_T)}, and no single point is the best "
            f"for more than {served_P[best]:.0%} of all preferences.{_most_opposed(correlation_TT, titles)}"
        )
    return Diagnosis(
        verdict=verdict,
        sentence=sentence,
        correlation=correlation_TT.tolist(),
        served_by_one=float(served_P[best]),
        spread=spread_T.tolist(),
        spread_in_noise=spread_in_noise_T.tolist(),
        best_single=(np.where(maximise, 1.0, -1.0) * points_PT[best]).tolist(),
    )


def typical_noise(noise_KT: np.ndarray) -> np.ndarray:
    """The median standard error of an evaluation of each task, [T]; NaN where none is known."""
    return np.array([float(np.nanmedian(n_K)) if np.isfinite(n_K).any() else np.nan for n_K in noise_KT.T])


def _correlation(samples_KT: np.ndarray) -> np.ndarray:
    varies_T = np.ptp(samples_KT, axis=0) > 0 if len(samples_KT) else np.zeros(samples_KT.shape[1], dtype=bool)
    # the mean of equal values may differ from them in the last bit
    centred_KT = np.where(varies_T, samples_KT - samples_KT.sum(axis=0) / max(len(samples_KT), 1), 0.0)
    size_T = np.sqrt((centred_KT**2).sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation_TT = np.clip(centred_KT.T @ centred_KT / np.outer(size_T, size_T), -1.0, 1.0)
    np.fill_diagonal(correlation_TT, 1.0)
    return correlation_TT


def _is_noise(samples_KT: np.ndarray, spread_T: np.ndarray, noise_T: np.ndarray) -> bool:
    """Whether the front, or already the whole of the samples, varies by no more than noise in every objective."""
    if not (noise_T > 0).all():
        return False
    narrow = bool((spread_T <= NOISE_OF_A_DIFFERENCE * noise_T).all())
    silent = len(samples_KT) > 2 and bool((samples_KT.std(axis=0, ddof=1) <= SIGNAL_OVER_NOISE * noise_T).all())
    return narrow or silent


def _tolerance(samples_KT: np.ndarray, noise_T: np.ndarray) -> np.ndarray:
    """[T], differences that do not count."""
    range_T = np.ptp(samples_KT, axis=0) if len(samples_KT) else np.zeros(len(noise_T))
    return np.where(np.isnan(noise_T), SMALL_SHARE * range_T, NOISE_OF_A_DIFFERENCE * noise_T)


def _least_loss(front_PT: np.ndarray, tolerance_T: np.ndarray) -> np.ndarray | None:
    """What a point that is everywhere within the tolerance of the best loses, [T]; None if there is no such point."""
    loss_PT = front_PT.max(axis=0) - front_PT
    within = np.flatnonzero((loss_PT <= tolerance_T).all(axis=1))
    return loss_PT[within[loss_PT[within].sum(axis=1).argmin()]] if len(within) else None


def _range(spread_T: np.ndarray) -> str:
    low, high = f"{spread_T.min():.2g}", f"{spread_T.max():.2g}"
    return low if low == high else f"{low} to {high}"


def _most_opposed(correlation_TT: np.ndarray, titles: Sequence[str]) -> str:
    """A sentence on the pair of objectives with the most negative correlation; nothing when all agree."""
    pairs = [(correlation_TT[i, j], j, i) for i in range(len(titles)) for j in range(i)]
    opposed = [pair for pair in pairs if pair[0] < 0]
    if not opposed:
        return ""
    value, i, j = min(opposed)
    return f" Most opposed are {titles[i]} and {titles[j]} (correlation {value:.2f} over the samples)."
