"""Expected hypervolume improvement on Gaussian processes that expect metrics to be nearly quadratic.

qLogNEHVI (Daulton et al. 2021; Ament et al. 2023), and past four objectives, where hypervolumes are dear, qLogNParEGO
(random scalarisations; Knowles 2006), both of BoTorch.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.parego import qLogNParEGO
from botorch.exceptions.warnings import BotorchWarning
from botorch.optim.optimize import optimize_acqf, optimize_acqf_list
from botorch.sampling import SobolQMCNormalSampler
from pydantic import Field

from mergecore.acquisitions.base import MOST_OBJECTIVES, Acquisition, Known
from mergecore.acquisitions.front import FrontPoints
from mergecore.errors import NumericalError
from mergecore.options import PluginOptions
from mergecore.sampling import single_models
from mergecore.surrogates.gaussian_process import MetricProcesses, to_unit
from mergecore.surrogates.least_squares import parameter_count

STEPS = 60
"""Most steps of the maximisation from each start."""
DRAWS = {3: 32, 4: 16}
"""By objectives, else 64: each draw has a front of its own to be cut into boxes, most of the time past 2 objectives."""
LEAST_ROOM = 0.1
"""Between the best evaluation and the reference point, in spreads of the metric, wherever single models seem to be."""


class HypervolumeOptions(PluginOptions):
    """Options of the expected hypervolume improvement."""

    draws: int | None = Field(
        None, ge=1, description="Quasi-random draws of the posterior; default: 64, 32 for 3 objectives, 16 for 4."
    )
    restarts: int = Field(4, ge=1, description="Starts of its maximisation.")
    candidates: int = Field(128, ge=1, description="Points that these starts are chosen from.")
    verify: int = Field(0, ge=0, description="Every so many candidates one on the predicted front; 0: none.")


class ExpectedHypervolume(Acquisition):
    """The candidates that are expected to add most hypervolume, given those that are pending.

    Where the user wants, some are points of the front that the quadratics predict: what is verified corrects both
    models.
    """

    Options: ClassVar[type[PluginOptions]] = HypervolumeOptions

    def propose(self, known: Known, count: int, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """One after the other, each given those before it; points of the front last."""
        models = len(known.box_N2)
        verified = self._verified(len(known.coefficients_KN) + len(known.pending_QN), models, count)
        found_QN, facts = np.empty((0, models)), dict[str, Any]()
        if verified < count:
            found_QN, facts = self._improving(known, count - verified, seed)
        if verified:
            waiting = replace(known, pending_QN=np.concatenate([known.pending_QN, found_QN]))
            points_QN, of_front = FrontPoints(FrontPoints.Options()).propose(waiting, verified, seed=seed)
            found_QN, facts = np.concatenate([found_QN, points_QN]), facts | of_front
        return found_QN, facts

    def _verified(self, before: int, models: int, count: int) -> int:
        """How many of the next candidates are points of the front; the same however they are batched.

        None before the quadratics have twice as many evaluations as parameters: their fronts are not worth it yet.
        """
        every = self.options.verify
        if not every or before < 2 * parameter_count(models):
            return 0
        return (before + count) // every - before // every

    def _improving(self, known: Known, count: int, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        if not np.isfinite(known.metrics_KT).all(axis=1).any():
            raise NumericalError("No coefficient vector was measured on every task.")
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", BotorchWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            torch.manual_seed(seed)
            processes = MetricProcesses(
                known.coefficients_KN,
                known.metrics_KT,
                known.noise_KT,
                known.box_N2,
                known.objectives.maximise,
                parts=known.objectives.parts,
            )
            bounds = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, len(known.box_N2))
            sizes: dict[str, Any] = {
                "num_restarts": self.options.restarts,
                "raw_samples": self.options.candidates,
                "options": {"maxiter": STEPS},
            }
            if len(known.fits) > MOST_OBJECTIVES:  # a scalarisation of its own for each candidate
                several = [self._acquisition(processes, known, seed) for _ in range(count)]
                unit_QN, value = optimize_acqf_list(several, bounds=bounds, **sizes)
            else:
                single = self._acquisition(processes, known, seed)
                unit_QN, value = optimize_acqf(single, bounds=bounds, q=count, sequential=True, **sizes)
        low_N, high_N = known.box_N2.T
        found = np.clip(low_N + unit_QN.numpy() * (high_N - low_N), low_N, high_N)
        return found, {"log expected improvement": torch.atleast_1d(value).tolist()}

    def _acquisition(self, processes: MetricProcesses, known: Known, seed: int) -> AcquisitionFunction:
        draws = self.options.draws or DRAWS.get(len(known.fits), 64)
        sampler = SobolQMCNormalSampler(torch.Size([draws]), seed=seed)
        pending = torch.from_numpy(to_unit(known.pending_QN, known.box_N2)) if len(known.pending_QN) else None
        shared: dict[str, Any] = {"sampler": sampler, "X_pending": pending, "prune_baseline": True}
        if len(known.fits) > MOST_OBJECTIVES:
            return qLogNParEGO(processes.model, processes.unit_KN, **shared)
        reference = reference_point(processes, parts=known.objectives.parts).tolist()
        return qLogNoisyExpectedHypervolumeImprovement(processes.model, reference, processes.unit_KN, **shared)


def reference_point(processes: MetricProcesses, *, parts: bool) -> torch.Tensor:
    """Gains [T] below which no hypervolume counts: the worst of the single models on each task, as predicted.

    Merges that are worse than every model on some task are of no use, and hypervolume from far below would be found
    among them. Where the prediction is unsure it is lower, by a standard deviation, since what is between it and the
    true one would never be looked for. Where the box holds no single model, it is what is a little worse than anything
    that was evaluated.

    Args:
        processes: of the metrics.
        parts: whether coefficients are of parts of one merge, so that there are no single models.
    """
    single_MN = single_models(processes.box_N2)
    best_T, worst_T = processes.gains_KT.max(dim=0).values, processes.gains_KT.min(dim=0).values
    if parts or not len(single_MN):
        return worst_T - 0.1 * (best_T - worst_T)
    unit_MN = torch.from_numpy(to_unit(single_MN, processes.box_N2))
    with torch.no_grad():
        posterior: Any = processes.model.posterior(unit_MN)
        predicted_T = (posterior.mean - posterior.variance.sqrt()).min(dim=0).values
    return torch.minimum(predicted_T, best_T - LEAST_ROOM)
