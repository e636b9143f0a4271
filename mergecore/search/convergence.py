"""Whether more evaluations would still change the front: what each round of a search brought, and when it is enough.

Shape suffixes: K evaluations, P points of a front, N coefficients, T objectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergecore.budget import StopConfig
from mergecore.errors import NumericalError
from mergecore.fronts.diagnose import Diagnosis, diagnose, typical_noise
from mergecore.fronts.indicators import hypervolume, igd_plus, worst_metrics
from mergecore.fronts.spread import spread_points
from mergecore.search.base import Front, Search

if TYPE_CHECKING:
    from mergecore.fronts.config import FrontConfig

POINTS = 24
"""Of a round's front that are kept."""
NOTHING_MORE = "nothing more to find"
NO_TRADE_OFF = "no trade-off"
NUMBERS = ("known", "hypervolume", "improvement", "gap", "noise", "movement")


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
        diagnosis: of this round's front.
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
    diagnosis: Diagnosis
    coefficients_PN: np.ndarray
    metrics_PT: np.ndarray
    maximise: tuple[bool, ...]

    def front(self) -> dict[str, Any]:
        """Some points that stand for the front, as JSON values."""
        kept = spread_points(self.metrics_PT, POINTS, maximise=self.maximise)
        return {"coefficients": self.coefficients_PN[kept].tolist(), "metrics": self.metrics_PT[kept].tolist()}

    def numbers(self) -> dict[str, Any]:
        """What is not the front, as JSON values; None for NaN."""
        values = {name: getattr(self, name) for name in NUMBERS}
        found = {name: None if np.isnan(value) else value for name, value in values.items()}
        return found | {"verdict": self.diagnosis.verdict}


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

    def observe(self) -> Round | None:
        """What the round that was told last brought; None when no front can be found yet."""
        search, goals, before = self._search, self._search.objectives, self._front
        try:
            front = search.front(self._options)
        except NumericalError:
            return None
        told_KT, new = search.metrics_KT, slice(self._known, None)
        whole_KT = told_KT[np.isfinite(told_KT).all(axis=1)]
        span_T = np.ptp(whole_KT, axis=0) if len(whole_KT) else np.ones(len(goals.names))
        span_T = np.where(span_T > 0, span_T, 1.0)
        metrics_PT = front.predicted_PT if front.fits else front.real_PT
        volume, improvement = self._volumes(whole_KT)
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
        found = Round(
            known=len(told_KT),
            hypervolume=volume,
            improvement=improvement,
            gap=gap,
            noise=float(np.nanmean(noise_KT)) if np.isfinite(noise_KT).any() else np.nan,
            movement=movement,
            diagnosis=diagnose(
                told_KT,
                metrics_PT,
                maximise=goals.maximise,
                noise_T=typical_noise(search.noise_KT),
                names=goals.names,
                seed=search.options.seed,
            ),
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
        if len(last) < stop.rounds:
            return ""
        settled = all(
            (np.isnan(r.gap) or r.gap <= max(stop.gap, np.nan_to_num(r.noise))) and r.movement <= self._limit(stop, r)
            for r in last
        )
        added = np.mean([r.improvement for r in last])
        if not settled or added > stop.hypervolume:
            return ""
        facts, diagnosis = f"the last {stop.rounds} rounds added {added:.2%} of hypervolume each", last[-1].diagnosis
        if diagnosis.verdict == "trade-off":
            return f"{NOTHING_MORE}: {facts} and moved the front by {max(r.movement for r in last):.1%}"
        return f"{NO_TRADE_OFF}: {diagnosis.sentence.rstrip('.')}"

    @staticmethod
    def _limit(stop: StopConfig, found: Round) -> float:
        """What counts as no movement: the tolerance, or what noise does to it."""
        return max(stop.front, 0.5 * np.nan_to_num(found.noise))

    def _volumes(self, whole_KT: np.ndarray) -> tuple[float, float]:
        """Of all that was measured on every task; and the share of it that the last round brought, NaN of the first."""
        goals = self._search.objectives
        before_KT = self._search.metrics_KT[: self._known]
        if not len(whole_KT):
            return 0.0, 0.0 if self.rounds else np.nan
        reference_T = worst_metrics(whole_KT, maximise=goals.maximise)
        volume, earlier = (
            hypervolume(rows_KT, reference_T=reference_T, maximise=goals.maximise) for rows_KT in (whole_KT, before_KT)
        )
        if not self.rounds:
            return volume, np.nan
        return volume, 1 - earlier / volume if volume > 0 else 0.0
