"""Is there a trade-off at all? The detector that MAP names as its missing piece. Suffixes: K samples, P points, T objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mergecore.errors import InputError
from mergecore.fronts.dominance import to_minimise
from mergecore.fronts.indicators import preferences

Verdict = Literal["trade-off", "no trade-off", "single point", "noise only"]

PREFERENCES = 1000
SERVED_BY_ONE = 0.95
NOISE_FACTOR = 3.0
"""A front narrower than so many standard errors on every task cannot be told from one point."""


@dataclass(frozen=True)
class Diagnosis:
    """What the samples and the front say about the trade-off.

    Attributes:
        verdict: the finding.
        sentence: the same in plain words.
        correlation: [T, T] of the objectives over the samples, as goodness (1: they rise and fall together).
        served_by_one: largest share of random preferences that one and the same point serves best.
        spread: range of the front on each task, in the metric's unit.
        spread_in_noise: the same in standard errors of one evaluation; NaN where the noise is unknown.
    """

    verdict: Verdict
    sentence: str
    correlation: list[list[float]]
    served_by_one: float
    spread: list[float]
    spread_in_noise: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summary.json."""
        return asdict(self)


def diagnose(
    samples_KT: np.ndarray,
    front_PT: np.ndarray,
    *,
    maximise: Sequence[bool],
    noise_T: np.ndarray | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Say whether the front is a trade-off, one point, or not more than noise.

    Args:
        samples_KT: evaluated metrics; rows with NaN are ignored.
        front_PT: the front's metrics; rows with NaN are ignored.
        maximise: direction of each objective.
        noise_T: standard error of one evaluation on each task, NaN where unknown.
        seed: of the random preferences.

    Raises:
        InputError: the front is empty.
    """
    samples = -to_minimise(samples_KT[np.isfinite(samples_KT).all(axis=1)], maximise=maximise)
    front = -to_minimise(front_PT[np.isfinite(front_PT).all(axis=1)], maximise=maximise)
    if not len(front):
        raise InputError("An empty front cannot be diagnosed.")
    tasks = front.shape[1]
    spread = np.ptp(front, axis=0)
    noise = np.full(tasks, np.nan) if noise_T is None else np.asarray(noise_T, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        in_noise = spread / noise
    scaled = (front - front.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    wanted = preferences(PREFERENCES, tasks, generator=np.random.default_rng(seed))
    served = float(np.bincount((wanted @ scaled.T).argmax(axis=1)).max() / PREFERENCES)
    distinct = len(np.unique(front, axis=0))
    correlation = _correlation(samples)
    if distinct == 1:
        verdict: Verdict = "single point"
        sentence = "One merge is best on every task at once: there is nothing to choose between."
    elif np.isfinite(in_noise).all() and (in_noise < NOISE_FACTOR).all():
        verdict = "noise only"
        sentence = (
            "The points of the front differ by no more than the noise of an evaluation; "
            "use more data before reading a trade-off into them."
        )
    elif served >= SERVED_BY_ONE:
        verdict = "no trade-off"
        sentence = f"One point serves {served:.0%} of all preferences best: the tasks hardly compete."
    else:
        verdict = "trade-off"
        off = correlation[~np.eye(tasks, dtype=bool)]
        hardest = f", the most opposed pair correlates at {np.nanmin(off):+.2f}" if np.isfinite(off).any() else ""
        sentence = (
            f"The tasks compete: along the front they move by {spread.min():.3g} to {spread.max():.3g}{hardest}, "
            f"and no single point serves more than {served:.0%} of preferences best."
        )
    return Diagnosis(verdict, sentence, correlation.tolist(), served, spread.tolist(), in_noise.tolist())


def _correlation(samples_KT: np.ndarray) -> np.ndarray:
    """Pearson correlation; NaN for a constant objective, 1 on the diagonal."""
    tasks = samples_KT.shape[1]
    if len(samples_KT) < 2:
        return np.where(np.eye(tasks, dtype=bool), 1.0, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.corrcoef(samples_KT, rowvar=False).reshape(tasks, tasks)
    return np.where(np.eye(tasks, dtype=bool), 1.0, found)
