"""The quadratic surrogate of MAP (Section 3.1): a metric as a link of a quadratic in the scaling coefficients.

    q(c) = e + bᵀc + ½ cᵀAc        M̃(c) = g(q(c))        p = (N+1)(N+2)/2 parameters

By Taylor's theorem at the base, e ≈ M(θ_pre), b ≈ Vᵀ∇M(θ_pre), A ≈ Vᵀ∇²M(θ_pre)V, up to the link g.

Shape suffixes: K evaluations, N models, T tasks, p parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mergecore.errors import InputError, NumericalError
from mergecore.surrogates.least_squares import RIDGES, Basis, Solution, parameter_count, solve
from mergecore.surrogates.links import Link, LinkName

FOLDS = 5


@dataclass(frozen=True, eq=False)
class QuadraticSurrogate:
    """g(e + bᵀc + ½ cᵀAc) with the link g that the bounds of the metric call for (`mergecore.surrogates.links.Link`).

    Attributes:
        e: constant.
        b_N: linear term.
        A_NN: quadratic term, symmetric.
        lower: smallest value of the metric; None (or -inf, stored as None) when unbounded.
        upper: largest value of the metric; None (or inf) when unbounded.

    Raises:
        InputError: shapes that do not fit, an A that is not symmetric, a value that is not finite, lower >= upper.
    """

    e: float
    b_N: np.ndarray
    A_NN: np.ndarray
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        e, b_N, A_NN = float(self.e), np.array(self.b_N, dtype=np.float64), np.array(self.A_NN, dtype=np.float64)
        if b_N.ndim != 1 or A_NN.shape != (len(b_N), len(b_N)) or not np.array_equal(A_NN, A_NN.T):
            raise InputError(
                f"b of shape {list(b_N.shape)} and A of shape {list(A_NN.shape)} are no quadratic.",
                "b is [N] and A a symmetric [N, N].",
            )
        if not (math.isfinite(e) and np.isfinite(b_N).all() and np.isfinite(A_NN).all()):
            raise InputError("A surrogate's e, b and A must be finite.")
        link = Link(self.lower, self.upper)
        for array in (b_N, A_NN):
            array.setflags(write=False)
        for name, value in (("e", e), ("b_N", b_N), ("A_NN", A_NN), ("lower", link.lower), ("upper", link.upper)):
            object.__setattr__(self, name, value)

    @property
    def link(self) -> LinkName:
        """identity (no bound), sigmoid (two bounds) or softplus (one)."""
        return Link(self.lower, self.upper).name

    def predict(self, coefficients_KN: ArrayLike) -> np.ndarray:
        """Metrics [K] at the coefficients; NaN coefficients give NaN, no coefficients give []."""
        return stack_quadratics([self])(np.asarray(coefficients_KN, dtype=np.float64))[:, 0]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` restores them to the last bit."""
        return {
            "e": self.e,
            "b": self.b_N.tolist(),
            "A": self.A_NN.tolist(),
            "link": self.link,
            "lower": self.lower,
            "upper": self.upper,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuadraticSurrogate:
        """The inverse of `to_dict`; other keys are ignored, so that an entry of surrogates.json will do.

        Raises:
            InputError: a key is missing, or the link does not follow from the bounds.
        """
        missing = [key for key in ("e", "b", "A", "lower", "upper") if key not in data]
        if missing:
            raise InputError(f"A stored surrogate lacks {missing[0]!r}.")
        surrogate = cls(data["e"], np.array(data["b"]), np.array(data["A"]), data["lower"], data["upper"])
        if data.get("link", surrogate.link) != surrogate.link:
            raise InputError(
                f"A stored surrogate says {data['link']!r}, but its bounds call for {surrogate.link!r}.",
                "Correct the bounds or drop the link.",
            )
        return surrogate


def stack_quadratics(surrogates: Sequence[QuadraticSurrogate]) -> Callable[[np.ndarray], np.ndarray]:
    """All surrogates as one function [K, N] -> [K, T]: one matrix product instead of T."""
    e_T = np.array([s.e for s in surrogates])
    b_NT = np.stack([s.b_N for s in surrogates], axis=1)
    tasks, models = len(surrogates), len(b_NT)
    # column block t of the [N, T N] matrix is A_t / 2, so that one product gives cᵀA_t / 2 for all tasks
    half_A = 0.5 * np.concatenate([s.A_NN for s in surrogates], axis=1)
    groups = [
        (link, [t for t, s in enumerate(surrogates) if Link(s.lower, s.upper) == link])
        for link in dict.fromkeys(Link(s.lower, s.upper) for s in surrogates)
    ]

    def predict(coefficients_KN: np.ndarray) -> np.ndarray:
        if coefficients_KN.ndim != 2 or coefficients_KN.shape[1] != models:
            raise InputError(f"Coefficients have shape [K, {models}], not {list(coefficients_KN.shape)}.")
        curved = (coefficients_KN @ half_A).reshape(-1, tasks, models)
        q_KT = e_T + coefficients_KN @ b_NT + (curved @ coefficients_KN[:, :, None])[:, :, 0]
        metrics_KT = np.empty_like(q_KT)
        for link, columns in groups:
            metrics_KT[:, columns] = link.value(q_KT[:, columns])
        return metrics_KT

    return predict


@dataclass(frozen=True, eq=False)
class QuadraticFit:
    """A fitted surrogate and how far to trust it.

    Attributes:
        surrogate: fitted to all usable evaluations.
        cross_validated_r2: R² of predictions by fits that the predicted evaluation took no part in (5 folds; repeated
            coefficient vectors share a fold). The number to report.
        press_r2: R² of leave-one-out predictions in closed form (Allen, 1974, "PRESS"): exact for the identity link,
            one Newton step from exact for the others. NaN when some evaluation alone decides a parameter (as for
            K = p), so that leaving it out leaves nothing to predict it from.
        train_r2: R² on the fitted evaluations themselves; not a measure of quality.
        noise: residual standard deviation, in the metric's unit; NaN without degrees of freedom.
        degrees_of_freedom: K minus the trace of the hat matrix.
        used: evaluations in the fit.
        excluded: evaluations left out because the metric is NaN or infinite.
        ridge: the penalty that leave-one-out prediction chose, 0 for plain least squares.
        warnings: sentences for the user.
        observed: [K], the metrics of the used evaluations.
        out_of_fold: [K], their cross-validated predictions; NaN where K = 1.

    The R² of a constant metric is NaN: it has no variance to explain.
    """

    surrogate: QuadraticSurrogate
    cross_validated_r2: float
    press_r2: float
    train_r2: float
    noise: float
    degrees_of_freedom: float
    used: int
    excluded: int
    ridge: float
    warnings: tuple[str, ...]
    observed: np.ndarray
    out_of_fold: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The surrogate's dictionary and the figures above: one entry of surrogates.json (NaN where undefined)."""
        return self.surrogate.to_dict() | {
            "held_out_r2": self.cross_validated_r2,
            "press_r2": self.press_r2,
            "train_r2": self.train_r2,
            "noise": self.noise,
            "degrees_of_freedom": self.degrees_of_freedom,
            "samples": self.used,
            "excluded": self.excluded,
            "ridge": self.ridge,
            "warnings": list(self.warnings),
            "observed": self.observed.tolist(),
            "out_of_fold": self.out_of_fold.tolist(),
        }


def fit_quadratic(
    coefficients_KN: ArrayLike,
    metrics_K: ArrayLike,
    *,
    lower: float | None = None,
    upper: float | None = None,
    ridges: Sequence[float] = RIDGES,
) -> QuadraticFit:
    """Fit the quadratic surrogate of one metric by least squares in metric space (MAP, Section 3.1, Equation 5).

    Without bounds this is ordinary least squares in closed form, otherwise Levenberg-Marquardt with the analytic
    Jacobian. Of the ridge penalties the one with the smallest leave-one-out error is kept; without noise that is 0,
    and the fit is exact from K = p evaluations on. Where K < p, only positive penalties are tried: the smallest of
    them gives the minimum-norm solution. Where K = p, leave-one-out errors do not exist and the penalty is 0.

    Args:
        coefficients_KN: evaluated coefficients, finite; rows may repeat.
        metrics_K: the metric there. NaN and infinite values are left out, and counted in the result.
        lower: smallest possible value of the metric, None when unbounded.
        upper: largest possible value, likewise.
        ridges: penalties to choose from, relative to K (`mergecore.surrogates.least_squares.Basis` says of what).

    Raises:
        InputError: shapes that do not fit, coefficients that are not finite, lower >= upper.
        NumericalError: no metric is finite.
    """
    c_KN, m_K, link = np.asarray(coefficients_KN, dtype=np.float64), np.asarray(metrics_K, float), Link(lower, upper)
    if c_KN.ndim != 2 or m_K.shape != c_KN.shape[:1]:
        raise InputError(f"Coefficients {list(c_KN.shape)} and metrics {list(m_K.shape)} are not [K, N] and [K].")
    if not np.isfinite(c_KN).all():
        raise InputError("Evaluated coefficients must be finite.")
    usable_K = np.isfinite(m_K)
    excluded = int((~usable_K).sum())
    c_KN, m_K = c_KN[usable_K], m_K[usable_K]
    if not len(m_K):
        raise NumericalError(
            f"None of the {excluded} evaluations has a finite metric, so there is nothing to fit.",
            "Look at the reasons recorded with the evaluations.",
        )
    warnings = _warnings(m_K, parameter_count(c_KN.shape[1]), excluded, link)
    if np.ptp(m_K) == 0:
        return _constant_fit(m_K, c_KN.shape[1], link, excluded, warnings)

    basis = Basis.over(c_KN)
    design_Kp = basis.design(c_KN)
    found = solve(design_Kp, m_K, link, ridges)
    out_of_fold_K = _out_of_fold(c_KN, design_Kp, m_K, link, ridges)
    e, b_N, A_NN = basis.to_coefficients(found.beta_p)
    residual_K = m_K - found.predicted_K
    freedom = len(m_K) - float(found.leverage_K.sum())
    return QuadraticFit(
        surrogate=QuadraticSurrogate(e, b_N, A_NN, lower, upper),
        cross_validated_r2=r_squared(m_K, out_of_fold_K),
        press_r2=r_squared(m_K, m_K - found.left_out_residual_K),
        train_r2=r_squared(m_K, found.predicted_K),
        noise=float(np.sqrt((residual_K**2).sum() / freedom)) if freedom > 1e-6 else math.nan,
        degrees_of_freedom=freedom,
        used=len(m_K),
        excluded=excluded,
        ridge=found.ridge,
        warnings=tuple(warnings),
        observed=m_K,
        out_of_fold=out_of_fold_K,
    )


def r_squared(observed_K: np.ndarray, predicted_K: np.ndarray) -> float:
    """1 - Σ(observed - predicted)² / Σ(observed - mean)²; NaN for a constant metric or where a prediction is NaN."""
    total = ((observed_K - observed_K.mean()) ** 2).sum()
    return float(1.0 - ((observed_K - predicted_K) ** 2).sum() / total) if total > 0 else math.nan


def _warnings(m_K: np.ndarray, parameters: int, excluded: int, link: Link) -> list[str]:
    warnings = []
    if excluded:
        warnings.append(f"{excluded} of {excluded + len(m_K)} evaluations have no finite metric and were left out.")
    if len(m_K) < parameters:
        warnings.append(
            f"{len(m_K)} evaluations are fewer than the {parameters} parameters of the quadratic: the fit is "
            f"under-determined. Evaluate at least {parameters}, better twice as many."
        )
    elif len(m_K) == parameters:
        warnings.append(
            f"{len(m_K)} evaluations for {parameters} parameters: the fit passes through every point and its noise "
            "along with it. Evaluate more."
        )
    slack = 1e-9 * float(np.abs(m_K).max())
    low, high = (-math.inf if link.lower is None else link.lower), (math.inf if link.upper is None else link.upper)
    outside = int(((m_K < low - slack) | (m_K > high + slack)).sum())
    if outside:
        warnings.append(f"{outside} metrics lie outside their stated range [{low:g}, {high:g}].")
    return warnings


def _constant_fit(m_K: np.ndarray, models: int, link: Link, excluded: int, warnings: list[str]) -> QuadraticFit:
    """A metric with one value: e carries it (at a bound as q = ±800, where the link gives the bound exactly)."""
    value = float(m_K[0])
    warnings.append(f"The metric is {value:.6g} for every candidate: its surrogate is that constant.")
    surrogate = QuadraticSurrogate(
        float(link.inverse(m_K[:1])[0]), np.zeros(models), np.zeros((models, models)), link.lower, link.upper
    )
    return QuadraticFit(
        surrogate=surrogate,
        cross_validated_r2=math.nan,
        press_r2=math.nan,
        train_r2=math.nan,
        noise=0.0 if len(m_K) > 1 else math.nan,
        degrees_of_freedom=len(m_K) - 1.0,
        used=len(m_K),
        excluded=excluded,
        ridge=0.0,
        warnings=tuple(warnings),
        observed=m_K,
        out_of_fold=m_K.copy() if len(m_K) > 1 else np.full(1, math.nan),
    )


def _out_of_fold(
    c_KN: np.ndarray, design_Kp: np.ndarray, m_K: np.ndarray, link: Link, ridges: Sequence[float]
) -> np.ndarray:
    """Each metric predicted by a fit, choice of ridge included, to the other folds."""
    groups_K = np.unique(c_KN, axis=0, return_inverse=True)[1].reshape(-1)
    groups = int(groups_K.max()) + 1
    if groups < 2:
        return np.full(len(m_K), math.nan)
    # a fixed shuffle: the anchors at the front of every sample must not end up in one fold
    fold_K = (np.random.default_rng(0).permutation(groups) % min(FOLDS, groups))[groups_K]
    predicted_K = np.empty(len(m_K))
    for fold in range(int(fold_K.max()) + 1):
        held_K = fold_K == fold
        found: Solution = solve(design_Kp[~held_K], m_K[~held_K], link, ridges)
        predicted_K[held_K] = link.value(design_Kp[held_K] @ found.beta_p)
    return predicted_K
