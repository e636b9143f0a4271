"""Gaussian processes whose covariance says that metrics are nearly quadratic.

A metric is modelled as an unknown quadratic of the coefficients plus a smooth deviation from it (universal kriging):
the covariance is that of a quadratic with random parameters, (x·x' + c)², plus a radial one. Where little was evaluated
the quadratic speaks, as in MAP; where much was, the deviation does; and as both are inferred together, the process is
unsure of the quadratic too. What is left is rough, a third covariance that fades within a twentieth of the box, rather
than noise: all candidates see the same examples, so a metric that is a little higher by chance stays so, and a search
can look for such. Its mean falls with the squared sum of the coefficients. How large each is is learned (marginal
likelihood and priors). Models of all metrics are BoTorch's, maximised, in units of the metric's own spread.

Shape suffixes: K evaluations, N coefficients, T objectives, P points.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import gpytorch
import numpy as np
import torch
from botorch.exceptions.warnings import BotorchWarning
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.optim.fit import fit_gpytorch_mll_scipy
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel, PolynomialKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior

SMALLEST_NOISE = 1e-3
"""Of a metric's spread: what no evaluation is trusted beyond."""
LOG_BOUNDS = (-9.0, 4.0)
"""Of variances, offset and fall: wider than their priors by far, and no covariance is singular within."""
FIT_STEPS = 75
"""Of the marginal likelihood's maximisation, at most."""
MEDIANS_OF_FEW, MEDIANS_OF_MANY = (0.3, 10.0), (3.0, 0.5)
"""Expected variances of the quadratic and of the deviation, of up to two models and of more: the more there are, the
more of what is unknown is quadratic; see benchmarks/results/sample_efficiency.md."""
ROUGH_LENGTH, ROUGH_MEDIAN = 0.05, math.exp(-4)
"""Of the unit box: what is much further apart shares nothing rough; and its expected variance, BoTorch's for noise."""


class FallingMean(gpytorch.means.Mean):
    """constant - fall (Σ c)²: merges lose quality as the sum of their coefficients grows. Both are learned, fall > 0.

    A quadratic with an unknown sign would hope for as much in the far corners of the box as it fears there, and a
    search would spend evaluations on each of them.

    Args:
        box_N2: the box of the coefficients that the unit box stands for.
        parts: whether coefficients are of parts of one merge, which all ones give; their mean is taken then.
    """

    def __init__(self, box_N2: np.ndarray, *, parts: bool) -> None:
        super().__init__()
        low_N, high_N = torch.from_numpy(np.array(box_N2.T)) / (len(box_N2) if parts else 1)
        self._low, self._side_N = low_N.sum(), high_N - low_N
        self.register_parameter("raw_constant", torch.nn.Parameter(torch.zeros(1)))
        self.register_parameter("raw_fall", torch.nn.Parameter(torch.zeros(1)))
        self.register_constraint("raw_fall", positive())
        self.register_prior("fall_prior", LogNormalPrior(0.0, 1.0), lambda mean: mean.fall)

    @property
    def fall(self) -> torch.Tensor:
        """What a coefficient of 1 costs, in spreads of the metric; [1]."""
        found: torch.Tensor = self.raw_fall_constraint.transform(self.raw_fall)
        return found

    def forward(self, unit: torch.Tensor) -> torch.Tensor:
        """[..., N] in the unit box to [...]."""
        return self.raw_constant - self.fall * (self._low + unit @ self._side_N) ** 2


def nearly_quadratic(models: int) -> Kernel:
    """Covariances of a random quadratic, a smooth deviation and what is rough, over the unit box of N dimensions."""
    quadratic = PolynomialKernel(power=2, offset_prior=LogNormalPrior(0.0, 1.0), offset_constraint=positive())
    radial = get_covar_module_with_dim_scaled_prior(ard_num_dims=models)
    of_quadratic, of_radial = MEDIANS_OF_FEW if models <= 2 else MEDIANS_OF_MANY
    rough = MaternKernel(nu=0.5)
    rough.lengthscale = ROUGH_LENGTH
    rough.raw_lengthscale.requires_grad_(False)
    smooth = scaled(quadratic, median=of_quadratic) + scaled(radial, median=of_radial)
    return smooth + scaled(rough, median=ROUGH_MEDIAN)


def scaled(kernel: Kernel, *, median: float) -> ScaleKernel:
    """The kernel times a variance that is learned, of which the median is expected.

    Learning starts at no more than 1: from large variances it ends at long lengths where short ones explain more.
    """
    prior = LogNormalPrior(math.log(median), 1.0)
    found = ScaleKernel(kernel, outputscale_prior=prior, outputscale_constraint=positive())
    found.outputscale = min(median, 1.0)
    return found


def positive() -> GreaterThan:
    """Searched by its logarithm, within `LOG_BOUNDS`."""
    return GreaterThan(0.0, transform=torch.exp, inv_transform=torch.log)


class MetricProcesses:
    """T processes over the unit box, one for each metric.

    Args:
        coefficients_KN: evaluated.
        metrics_KT: NaN where not measured; each process knows what was measured of its metric.
        noise_KT: standard errors, NaN where unknown. All candidates see the same examples, so what they all have is no
            noise between them and is not taken from here; what one has more than the best measured one is.
        box_N2: the box.
        maximise: direction of each metric.
        parts: whether coefficients are of parts of one merge rather than of models.

    Attributes:
        unit_KN, gains_KT: what was measured on every metric, in the unit box and in units of the metrics' spread.
        model: of all metrics; ``posterior`` gives their gains.
    """

    def __init__(
        self,
        coefficients_KN: np.ndarray,
        metrics_KT: np.ndarray,
        noise_KT: np.ndarray,
        box_N2: np.ndarray,
        maximise: Sequence[bool],
        *,
        parts: bool = False,
    ) -> None:
        self.box_N2 = box_N2
        self.sign_T = np.where(maximise, 1.0, -1.0)
        self.centre_T = np.nanmean(metrics_KT, axis=0)
        spread_T = np.nanstd(metrics_KT, axis=0)
        size_T = np.maximum(np.abs(self.centre_T), 1.0)
        self.spread_T = np.where(spread_T > 1e-9 * size_T, spread_T, 1e-3 * size_T)  # but for rounding, all the same
        unit_KN = torch.from_numpy(to_unit(coefficients_KN, box_N2))
        gains_KT = torch.from_numpy(self.sign_T * (metrics_KT - self.centre_T) / self.spread_T)
        told_KT = torch.isfinite(gains_KT)
        whole_K = told_KT.all(dim=1)
        self.unit_KN, self.gains_KT = unit_KN[whole_K], gains_KT[whole_K]
        variance_KT = torch.from_numpy(excess(noise_KT / self.spread_T) ** 2)
        self.model = ModelListGP(
            *(
                fitted(unit_KN[told_K], gains_K[told_K], variance_K[told_K], FallingMean(box_N2, parts=parts))
                for told_K, gains_K, variance_K in zip(told_KT.T, gains_KT.T, variance_KT.T, strict=True)
            )
        )

    def predict(self, coefficients_PN: np.ndarray) -> np.ndarray:
        """Metrics [P, T] in their own units: the processes' means."""
        unit_PN = torch.from_numpy(to_unit(coefficients_PN, self.box_N2))
        with torch.no_grad(), gpytorch.settings.fast_pred_var():
            gains_PT: Any = self.model.posterior(unit_PN).mean
        return np.asarray(self.centre_T + self.sign_T * gains_PT.numpy() * self.spread_T)


def fitted(
    unit_KN: torch.Tensor, gains_K: torch.Tensor, variance_K: torch.Tensor, mean: gpytorch.means.Mean
) -> SingleTaskGP:
    """A metric's process around a mean, with known variances of noise.

    A fit that ends early, as on metrics that are quadratics without noise, leaves the best parameters until there.
    """
    likelihood = FixedNoiseGaussianLikelihood(variance_K + SMALLEST_NOISE**2)
    model = SingleTaskGP(
        unit_KN,
        gains_K[:, None],
        likelihood=likelihood,
        covar_module=nearly_quadratic(unit_KN.shape[1]),
        mean_module=mean,
        outcome_transform=None,
    )
    likelihood_of_data = ExactMarginalLogLikelihood(likelihood, model)
    by_logarithm = ("raw_outputscale", "raw_offset", "raw_fall")
    bounds: Any = {name: LOG_BOUNDS for name, _ in likelihood_of_data.named_parameters() if name.endswith(by_logarithm)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BotorchWarning)
        fit_gpytorch_mll_scipy(likelihood_of_data, bounds=bounds, options={"maxiter": FIT_STEPS})
    return model.eval()


def excess(noise_KT: np.ndarray) -> np.ndarray:
    """What each standard error has more than its metric's smallest, as variances add up; 0 where unknown."""
    known_KT = np.where(np.isfinite(noise_KT), noise_KT, np.inf)
    least_T = known_KT.min(axis=0)
    with np.errstate(invalid="ignore"):
        more_KT = np.sqrt(known_KT**2 - least_T**2)
    return np.where(np.isfinite(more_KT), more_KT, 0.0)


def to_unit(points_KN: np.ndarray, box_N2: np.ndarray) -> np.ndarray:
    """Coefficients as points of the unit box."""
    low_N, high_N = box_N2.T
    return np.asarray((points_KN - low_N) / (high_N - low_N), dtype=np.float64)
