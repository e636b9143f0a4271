"""A metric as its quadratic surrogate plus a Gaussian process on what that leaves over.

The quadratic says what MAP knows of a merge before much was evaluated, the process takes over as evaluations come: the
process's mean is the quadratic's deviation from the metric's mean, times p / (p + K), so that p parameters count for as
many evaluations. With the whole quadratic as its mean a process is too sure of it to look where it is wrong (measured
in benchmarks/results/sample_efficiency.md). Models of all metrics are BoTorch's, maximised, in units of the metric's
own spread.

Shape suffixes: K evaluations, N coefficients, T objectives, P points.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import gpytorch
import numpy as np
import torch
from botorch.exceptions.warnings import BotorchWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.mlls import SumMarginalLogLikelihood

from mergecore.surrogates.least_squares import parameter_count
from mergecore.surrogates.links import Link
from mergecore.surrogates.quadratic import QuadraticFit, QuadraticSurrogate

SHARED_EXAMPLES = 0.5
"""Part of a metric's standard error that is taken: all candidates see the same examples, so they differ more surely."""
SMALLEST_NOISE = 1e-3
"""Of a metric's spread: what no evaluation is trusted beyond."""


class QuadraticMean(gpytorch.means.Mean):
    """The quadratic surrogate, weighted, as the mean of a process over the unit box.

    Args:
        surrogate: of the metric.
        weight: of the quadratic, in [0, 1]; 0 leaves the metric's centre.
        box_N2: the box that the unit box stands for.
        sign: -1 for a metric to minimise.
        centre: of the metric.
        spread: of the metric.
    """

    def __init__(
        self,
        surrogate: QuadraticSurrogate,
        weight: float,
        box_N2: np.ndarray,
        sign: float,
        centre: float,
        spread: float,
    ) -> None:
        super().__init__()
        low_N, high_N = torch.from_numpy(np.array(box_N2.T))
        self._low_N, self._side_N = low_N, high_N - low_N
        self._e, self._link = surrogate.e, Link(surrogate.lower, surrogate.upper)
        self._b_N, self._A_NN = torch.tensor(surrogate.b_N), torch.tensor(surrogate.A_NN)
        self._scale, self._centre = weight * sign / spread, centre

    def forward(self, unit: torch.Tensor) -> torch.Tensor:
        """[..., N] in the unit box to [...]."""
        c = self._low_N + unit * self._side_N
        q = self._e + c @ self._b_N + 0.5 * ((c @ self._A_NN) * c).sum(dim=-1)
        return self._scale * (linked(self._link, q) - self._centre)


def linked(link: Link, q: torch.Tensor) -> torch.Tensor:
    """`Link.value` with gradients."""
    if link.name == "identity":
        return q
    if link.lower is not None and link.upper is not None:
        return link.lower + (link.upper - link.lower) * torch.sigmoid(q)
    if link.lower is not None:
        return link.lower + torch.nn.functional.softplus(q)
    assert link.upper is not None
    return link.upper - torch.nn.functional.softplus(q)


class CorrectedSurrogates:
    """T processes over the unit box, each around its quadratic.

    Args:
        coefficients_KN: evaluated.
        metrics_KT: NaN where not measured; each process knows what was measured of its metric.
        noise_KT: standard errors; where NaN, the quadratic's residual deviation stands in.
        fits: quadratic surrogates of these evaluations.
        box_N2: the box.
        maximise: direction of each metric.

    Attributes:
        unit_KN, gains_KT: what was measured on every metric, in the unit box and in units of the metrics' spread.
    """

    def __init__(
        self,
        coefficients_KN: np.ndarray,
        metrics_KT: np.ndarray,
        noise_KT: np.ndarray,
        fits: Sequence[QuadraticFit],
        box_N2: np.ndarray,
        maximise: Sequence[bool],
    ) -> None:
        self.box_N2 = box_N2
        self.sign_T = np.where(maximise, 1.0, -1.0)
        self.centre_T = np.nanmean(metrics_KT, axis=0)
        spread_T = np.nanstd(metrics_KT, axis=0)
        self.spread_T = np.where(spread_T > 0, spread_T, 1.0)
        unit_KN = torch.from_numpy(to_unit(coefficients_KN, box_N2))
        gains_KT = torch.from_numpy(self.sign_T * (metrics_KT - self.centre_T) / self.spread_T)
        whole_K = torch.isfinite(gains_KT).all(dim=1)
        self.unit_KN, self.gains_KT = unit_KN[whole_K], gains_KT[whole_K]
        parameters = parameter_count(len(box_N2))
        models = []
        for t, fit in enumerate(fits):
            fallback = fit.noise if np.isfinite(fit.noise) else 0.0
            noise_K = np.where(np.isfinite(noise_KT[:, t]), SHARED_EXAMPLES * noise_KT[:, t], fallback)
            known_K = noise_K / self.spread_T[t]
            told_K = torch.isfinite(gains_KT[:, t])
            variance_K1 = torch.from_numpy(np.maximum(known_K, SMALLEST_NOISE) ** 2)[told_K, None]
            weight = parameters / (parameters + int(told_K.sum()))
            mean = QuadraticMean(fit.surrogate, weight, box_N2, self.sign_T[t], self.centre_T[t], self.spread_T[t])
            kernel = get_covar_module_with_dim_scaled_prior(ard_num_dims=len(box_N2))
            models.append(
                SingleTaskGP(
                    unit_KN[told_K],
                    gains_KT[told_K, t : t + 1],
                    train_Yvar=variance_K1,
                    mean_module=mean,
                    covar_module=kernel,
                    outcome_transform=None,
                )
            )
        self.model = ModelListGP(*models)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BotorchWarning)  # of a fit that stops early: still a usable one
            fit_gpytorch_mll(SumMarginalLogLikelihood(self.model.likelihood, self.model))

    def predict(self, coefficients_PN: np.ndarray) -> np.ndarray:
        """Metrics [P, T] in their own units: the processes' means."""
        unit_PN = torch.from_numpy(to_unit(coefficients_PN, self.box_N2))
        with torch.no_grad(), gpytorch.settings.fast_pred_var():
            gains_PT: Any = self.model.posterior(unit_PN).mean
        return np.asarray(self.centre_T + self.sign_T * gains_PT.numpy() * self.spread_T)


def to_unit(points_KN: np.ndarray, box_N2: np.ndarray) -> np.ndarray:
    """Coefficients as points of the unit box."""
    low_N, high_N = box_N2.T
    return np.asarray((points_KN - low_N) / (high_N - low_N), dtype=np.float64)
