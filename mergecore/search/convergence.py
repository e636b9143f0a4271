"""Whether more evaluations would still change the front: what each round of a search brought, and when it is enough.

Shape suffixes: K evaluations, P points of a front, N coefficients, T objectives.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergecore.budget import StopConfig
from mergecore.errors import NumericalError
from mergecore.fronts.diagnose import Diagnosis, diagnose
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.indicators import hypervolume, igd_plus
from mergecore.fronts.spread import spread_points
from mergecore.search.base import Front, Search

if TYPE_CHECKING:
    from mergecore.config import FrontConfig

POINTS = 24
"""Of a round's front that are kept."""
NOT_FOUND = "nothing more to find"
NO_TRADE_OFF = "no trade-off"


@dataclass(frozen=True)
class Round:
    """What one round brought.

    Attributes:
        known: candidates told so far, K.
        hypervolume: of everything evaluated so far, against the worst of it on each task.
        improvement: the share of it that this round brought; NaN after the first.
        gap: mean distance of this round's metrics to what the surrogates before it predicted, in shares of each
            metric's range over everything evaluated; NaN after the first round and where there are no surrogates.
        noise: mean standard error of a metric in the same unit; NaN where unknown.
        movement: mean distance of this front to the one before it (IGD+) in the same unit; NaN after the first.
        verdict: of `diagnose`.
        coefficients_PN: this round's front.
        metrics_PT: its metrics, predicted where there are surrogates.
        maximise: their directions.
    """

    known: int
    hypervolume: float
    improvement: float
    gap: float
    noise: float
    movement: float
    verdict: str
    coefficients_PN: np.ndarray
    metrics_PT: np.ndarray
    maximise: tuple[bool, ...]

    def front(self) -> dict[str, Any]:
        """Some points that stand for the front, as JSON values."""
        kept = spread_points(self.metrics_PT, POINTS, maximise=self.maximise)
        return {"coefficients": self.coefficients_PN[kept].tolist(), "metrics": self.metrics_PT[kept].tolist()}

    def numbers(self) -> dict[str, Any]:
        """What is not the front, as JSON values; None for NaN."""
        values = {name: value for name, value in asdict(self).items() if isinstance(value, (int, float, str))}
        return {name: None if value != value else value for name, value in values.items()}


class Convergence:
    """Looks at a search after each of its rounds; costs no evaluation.

    Args:
        search: told the first round when `observe` is first called, and one more before each further call.
        front: how the fronts on the way are found; a coarse one will do.

    Attributes:
        rounds: what each brought.
    """

    def __init__(self, search: Search, front: FrontConfig) -> None:
        self._search, self._options = search, front
        self._front: Front | None = None
        self._known = 0
        self.rounds: list[Round] = []
        self._diagnosis: Diagnosis | None = None

    def observe(self) -> Round | None:
        """What the round that was told last brought; None when no front can be found yet."""
        search, goals, before = self._search, self._search.objectives, self._front
        try:
            front = search.front(self._options)
        except NumericalError:
            return None
        told_KT, new = search.metrics_KT, slice(self._known, None)
        whole_KT = told_KT[np.isfinite(told_KT).all(axis=1)]
        sign_T = np.where(goals.maximise, 1.0, -1.0)
        span_T = np.ptp(whole_KT, axis=0) if len(whole_KT) else np.ones(len(sign_T))
        span_T = np.where(span_T > 0, span_T, 1.0)
        metrics_PT = front.predicted_PT if front.fits else front.real_PT
        volume, earlier = (self._volume(whole_KT, rows, sign_T) for rows in (told_KT, told_KT[: self._known]))
        gap = movement = np.nan
        if before is not None:
            if before.fits:
                asked_KN = search.coefficients_KN[new]
                predicted_KT = np.stack([fit.surrogate.predict(asked_KN) for fit in before.fits], axis=1)
                missed_KT = np.abs(predicted_KT - told_KT[new]) / span_T
                gap = float(np.nanmean(missed_KT)) if np.isfinite(missed_KT).any() else np.nan
            earlier_PT = before.predicted_PT if before.fits else before.real_PT
            movement = igd_plus(earlier_PT / span_T, metrics_PT / span_T, maximise=goals.maximise)
            movement = max(movement, igd_plus(metrics_PT / span_T, earlier_PT / span_T, maximise=goals.maximise))
        noise_KT = search.noise_KT / span_T
        noise_T = np.array([np.nanmedian(n) if np.isfinite(n).any() else np.nan for n in search.noise_KT.T])
        self._diagnosis = diagnose(
            told_KT, metrics_PT, maximise=goals.maximise, noise_T=noise_T, names=goals.names, seed=search.options.seed
        )
        found = Round(
            known=len(told_KT),
            hypervolume=volume,
            improvement=1 - earlier / volume if self.rounds and volume > 0 else (0.0 if self.rounds else np.nan),
            gap=gap,
            noise=float(np.nanmean(noise_KT)) if np.isfinite(noise_KT).any() else np.nan,
            movement=movement,
            verdict=self._diagnosis.verdict,
            coefficients_PN=front.coefficients_PN,
            metrics_PT=metrics_PT,
            maximise=goals.maximise,
        )
        self.rounds.append(found)
        self._front, self._known = front, len(told_KT)
        return found

    def enough(self, stop: StopConfig) -> str:
        """Why more evaluations would not change the front, in a sentence; empty while they may."""
        last = self.rounds[1:][-stop.rounds :]  # the first has nothing before it to be compared with
        if len(last) < stop.rounds or self._diagnosis is None:
            return ""
        settled = all(
            (np.isnan(r.gap) or r.gap <= max(stop.gap, np.nan_to_num(r.noise))) and r.movement <= self._limit(stop, r)
            for r in last
        )
        if not settled or np.mean([r.improvement for r in last]) > stop.hypervolume:
            return ""
        facts = f"the last {stop.rounds} rounds added {np.mean([r.improvement for r in last]):.2%} of hypervolume each"
        if self._diagnosis.verdict == "trade-off":
            return f"{NOT_FOUND}: {facts} and moved the front by {max(r.movement for r in last):.1%}"
        return f"{NO_TRADE_OFF}: {self._diagnosis.sentence.rstrip('.')}"

    @staticmethod
    def _limit(stop: StopConfig, found: Round) -> float:
        """What counts as no movement: the tolerance, or what noise does to it."""
        return max(stop.front, 0.5 * np.nan_to_num(found.noise))

    def _volume(self, all_KT: np.ndarray, rows_KT: np.ndarray, sign_T: np.ndarray) -> float:
        rows_KT = rows_KT[np.isfinite(rows_KT).all(axis=1)]
        if not len(rows_KT):
            return 0.0
        goals = self._search.objectives
        worst_T = (all_KT * sign_T).min(axis=0) * sign_T
        best_KT = rows_KT[non_dominated(rows_KT, maximise=goals.maximise)]
        return hypervolume(best_KT, reference_T=worst_T, maximise=goals.maximise)
