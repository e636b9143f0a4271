"""What users search coefficients with today, as ask and tell: no surrogate of ours in any of them.

Random, Sobol, NSGA-II on real evaluations (pymoo; what mergenetic does), TPE and NSGA-II of Optuna, and qLogNEHVI, or
past four objectives qLogNParEGO, of BoTorch with its own Gaussian processes.

Shape suffixes: k candidates of one batch, K of all, N coefficients, T objectives.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from mergecore.acquisitions.base import MOST_OBJECTIVES
from mergecore.acquisitions.hypervolume import DRAWS, STEPS
from mergecore.sampling import sample

POPULATION = {2: 8, 3: 10, 4: 12}
"""Of evolutionary searches by N, so that tens of evaluations are some generations; else 20."""


class Rival(ABC):
    """A search in the unit box with metrics that are all to be maximised.

    Args:
        models: N.
        objectives: T.
        seed: of everything random in it.
    """

    def __init__(self, models: int, objectives: int, seed: int) -> None:
        self.models, self.objectives, self.seed = models, objectives, seed
        self.box_N2 = np.tile([0.0, 1.0], (models, 1))

    @abstractmethod
    def ask(self) -> np.ndarray:
        """The next candidates [k, N]; never empty."""

    def tell(self, coefficients_kN: np.ndarray, gains_kT: np.ndarray) -> None:  # noqa: B027
        """Their metrics, in the order in which they were asked for."""


class Random(Rival):
    """Uniform draws."""

    def __init__(self, models: int, objectives: int, seed: int) -> None:
        super().__init__(models, objectives, seed)
        self._generator = np.random.default_rng(seed)

    def ask(self) -> np.ndarray:
        return self._generator.random((1, self.models))


class Sobol(Rival):
    """A scrambled Sobol sequence; its non-dominated points are the front."""

    LENGTH = 1024

    def __init__(self, models: int, objectives: int, seed: int) -> None:
        super().__init__(models, objectives, seed)
        self._points_KN = sample("sobol", self.LENGTH, box=self.box_N2, seed=seed, anchors=False)
        self._next = 0

    def ask(self) -> np.ndarray:
        self._next += 1
        return self._points_KN[self._next - 1 : self._next]


class PymooNsga2(Rival):
    """NSGA-II of pymoo on real evaluations."""

    def __init__(self, models: int, objectives: int, seed: int) -> None:
        super().__init__(models, objectives, seed)
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem

        problem = Problem(n_var=models, n_obj=objectives, xl=0.0, xu=1.0)
        self._algorithm = NSGA2(pop_size=POPULATION.get(models, 20))
        self._algorithm.setup(problem, termination=("n_gen", 10_000), seed=seed, verbose=False)
        self._problem = problem

    def ask(self) -> np.ndarray:
        self._asked = self._algorithm.ask()
        return np.array(self._asked.get("X"), dtype=np.float64)

    def tell(self, coefficients_kN: np.ndarray, gains_kT: np.ndarray) -> None:
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        Evaluator().eval(StaticProblem(self._problem, F=-gains_kT), self._asked)
        self._algorithm.tell(infills=self._asked)


class _Optuna(Rival):
    """A sampler of Optuna, one trial at a time."""

    def __init__(self, models: int, objectives: int, seed: int) -> None:
        super().__init__(models, objectives, seed)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study = optuna.create_study(directions=["maximize"] * objectives, sampler=self._sampler(optuna))

    @abstractmethod
    def _sampler(self, optuna: Any) -> Any:
        """The sampler to use."""

    def ask(self) -> np.ndarray:
        self._trial = self._study.ask()
        return np.array([[self._trial.suggest_float(f"c{n}", 0.0, 1.0) for n in range(self.models)]])

    def tell(self, coefficients_kN: np.ndarray, gains_kT: np.ndarray) -> None:
        self._study.tell(self._trial, gains_kT[0].tolist())


class Tpe(_Optuna):
    """Multi-objective TPE of Optuna (Ozaki et al. 2022), its coefficients modelled together."""

    def _sampler(self, optuna: Any) -> Any:
        return optuna.samplers.TPESampler(seed=self.seed, multivariate=True)


class OptunaNsga2(_Optuna):
    """NSGA-II of Optuna."""

    def _sampler(self, optuna: Any) -> Any:
        return optuna.samplers.NSGAIISampler(seed=self.seed, population_size=POPULATION.get(self.models, 20))


class ExpectedImprovement(Rival):
    """qLogNEHVI on Gaussian processes, as BoTorch's tutorial has it; qLogNParEGO past four objectives."""

    def __init__(self, models: int, objectives: int, seed: int, *, batch: int) -> None:
        super().__init__(models, objectives, seed)
        self._batch = batch
        self._c_KN, self._gains_KT = np.empty((0, models)), np.empty((0, objectives))

    def ask(self) -> np.ndarray:
        if not len(self._c_KN):
            return sample("sobol", 2 * (self.models + 1), box=self.box_N2, seed=self.seed, anchors=False)
        import torch
        from botorch.acquisition import AcquisitionFunction
        from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
        from botorch.acquisition.multi_objective.parego import qLogNParEGO
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import ModelListGP, SingleTaskGP
        from botorch.models.transforms import Standardize
        from botorch.optim.optimize import optimize_acqf, optimize_acqf_list
        from botorch.sampling import SobolQMCNormalSampler
        from gpytorch.mlls import SumMarginalLogLikelihood

        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(self.seed * 1000 + len(self._c_KN))
            x, y = torch.from_numpy(self._c_KN), torch.from_numpy(self._gains_KT)
            single = [
                SingleTaskGP(x, y[:, t : t + 1], outcome_transform=Standardize(1)) for t in range(self.objectives)
            ]
            model = ModelListGP(*single)
            fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
            draws = DRAWS.get(self.objectives, 64)  # as Bayesian MAP
            sampler = SobolQMCNormalSampler(torch.Size([draws]), seed=self.seed)
            bounds = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, self.models)
            sizes: dict[str, Any] = {"num_restarts": 4, "raw_samples": 128, "options": {"maxiter": STEPS}}
            if self.objectives > MOST_OBJECTIVES:
                several: list[AcquisitionFunction] = [
                    qLogNParEGO(model, x, sampler=sampler, prune_baseline=True) for _ in range(self._batch)
                ]
                found, _ = optimize_acqf_list(several, bounds=bounds, **sizes)
            else:
                worst = y.min(dim=0).values - 0.1 * (y.max(dim=0).values - y.min(dim=0).values)
                acquisition = qLogNoisyExpectedHypervolumeImprovement(
                    model, worst.tolist(), x, sampler=sampler, prune_baseline=True
                )
                found, _ = optimize_acqf(acquisition, bounds=bounds, q=self._batch, sequential=True, **sizes)
        return np.asarray(found.numpy(), dtype=np.float64)

    def tell(self, coefficients_kN: np.ndarray, gains_kT: np.ndarray) -> None:
        self._c_KN = np.vstack([self._c_KN, coefficients_kN])
        self._gains_KT = np.vstack([self._gains_KT, gains_kT])


def rivals(batch: int) -> dict[str, Callable[[int, int, int], Rival]]:
    """Name to (N, T, seed) to rival; ``batch`` is of those that are told several at a time by choice."""
    return {
        "random": Random,
        "Sobol": Sobol,
        "NSGA-II (pymoo)": PymooNsga2,
        "NSGA-II (Optuna)": OptunaNsga2,
        "TPE (Optuna)": Tpe,
        "qLogNEHVI (BoTorch)": lambda models, objectives, seed: ExpectedImprovement(
            models, objectives, seed, batch=batch
        ),
    }
