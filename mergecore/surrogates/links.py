"""Links: from the real line, where the quadratic lives, to the range of a metric (MAP, Section 3.1, cases 1 to 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit

from mergecore.errors import InputError

LinkName = Literal["identity", "sigmoid", "softplus"]

AT_BOUND = 800.0
"""|q| that stands for a bound: exp(-800) is zero in double precision, so the links give the bound exactly."""


@dataclass(frozen=True)
class Link:
    """The monotone map g from q to a metric with these bounds; None or an infinity stands for no bound.

    ==========  ===============  =======================================================
    sigmoid     [lower, upper]   lower + (upper - lower) / (1 + exp(-q))
    softplus    [lower, inf)     lower + log(1 + exp(q))
    softplus    (-inf, upper]    upper - log(1 + exp(q)), the mirror image; falls with q
    identity    (-inf, inf)      q
    ==========  ===============  =======================================================

    Raises:
        InputError: lower >= upper, or a bound is NaN.
    """

    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        lower = -math.inf if self.lower is None else float(self.lower)
        upper = math.inf if self.upper is None else float(self.upper)
        if not lower < upper or lower == math.inf or upper == -math.inf:
            raise InputError(f"A metric cannot range from {self.lower} to {self.upper}.", "Give lower < upper.")
        object.__setattr__(self, "lower", lower if math.isfinite(lower) else None)
        object.__setattr__(self, "upper", upper if math.isfinite(upper) else None)

    @property
    def name(self) -> LinkName:
        """Which of the three it is."""
        if self.lower is not None and self.upper is not None:
            return "sigmoid"
        return "identity" if self.lower is None and self.upper is None else "softplus"

    @property
    def _affine(self) -> tuple[float, float]:
        """(offset, factor): the metric is offset + factor * standard link."""
        if self.lower is not None:
            return self.lower, 1.0 if self.upper is None else self.upper - self.lower
        return (0.0, 1.0) if self.upper is None else (self.upper, -1.0)

    def value(self, q: np.ndarray) -> np.ndarray:
        """g(q), of the shape of q."""
        offset, factor = self._affine
        return offset + factor * _STANDARD[self.name](q)

    def slope(self, q: np.ndarray) -> np.ndarray:
        """g'(q), of the shape of q."""
        _, factor = self._affine
        if self.name == "identity":
            return np.ones_like(q)
        rising = expit(q)
        return factor * (rising if self.name == "softplus" else rising * expit(-q))

    def inverse(self, metrics: np.ndarray) -> np.ndarray:
        """q with g(q) = metrics; at a bound or beyond it ±`AT_BOUND`, where g gives the bound to the last digit."""
        offset, factor = self._affine
        standard = (np.asarray(metrics, dtype=np.float64) - offset) / factor
        if self.name == "identity":
            return standard
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.name == "sigmoid":
                standard = np.clip(standard, 0.0, 1.0)
                q = np.log(standard) - np.log1p(-standard)
            else:
                standard = np.maximum(standard, 0.0)
                q = standard + np.log(-np.expm1(-standard))
        return np.clip(q, -AT_BOUND, AT_BOUND) if self.name == "sigmoid" else np.maximum(q, -AT_BOUND)

    def inside(self, metrics: np.ndarray, *, share: float) -> np.ndarray:
        """Metrics moved away from the bounds by ``share`` of their range (of their median distance with one bound)."""
        offset, factor = self._affine
        standard = (metrics - offset) / factor
        if self.name == "sigmoid":
            standard = np.clip(standard, share, 1 - share)
        elif self.name == "softplus":
            floor = share * np.median(np.abs(standard))
            standard = np.maximum(standard, floor if floor > 0 else share)
        return offset + factor * standard


def _softplus(q: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, q)


_STANDARD = {"identity": np.asarray, "sigmoid": expit, "softplus": _softplus}
