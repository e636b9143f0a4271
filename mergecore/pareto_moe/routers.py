"""Routers: small functions from a preference vector to routing weights, all modules' at once.

A router has no state; its parameters are a dictionary of float64 tensors whose first axis is the module, so that
hundreds of routers cost a few matrix products.

Shape suffixes: T tasks, N models, G modules, H hidden units.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from mergecore.options import PluginOptions

Parameters = dict[str, torch.Tensor]
SPREAD = 0.01
"""Standard deviation of the initial matrices (PWE-MoE, Section 4.1)."""


class Router(ABC):
    """One function for each of G modules, from the simplex to N routing weights.

    Class attributes:
        Options: what ``router_options`` may say.

    Args:
        options: validated options of this class's ``Options``.
        modules: G.
        tasks: T, entries of a preference.
        models: N, routing weights of a module.
        scaling: lambda, the task-arithmetic coefficient that every routing weight starts near.
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions

    def __init__(self, options: Any, *, modules: int, tasks: int, models: int, scaling: float) -> None:
        self.options = options
        self.modules, self.tasks, self.models, self.scaling = modules, tasks, models, scaling

    @abstractmethod
    def initial(self, generator: np.random.Generator) -> Parameters:
        """Parameters [G, ...] whose routing weights are near lambda for every preference."""

    @abstractmethod
    def weights(self, parameters: Parameters, preference_T: torch.Tensor) -> torch.Tensor:
        """Routing weights [G, N] of all modules for one preference, float64; differentiable in the parameters."""

    def size(self) -> int:
        """Parameters of one module's router."""
        drawn = self.initial(np.random.default_rng(0))
        return sum(tensor.numel() for tensor in drawn.values()) // max(self.modules, 1)

    def _normal(self, generator: np.random.Generator, *shape: int) -> torch.Tensor:
        return torch.from_numpy(generator.normal(0.0, SPREAD, size=(self.modules, *shape)))

    def _constant(self, value: float, *shape: int) -> torch.Tensor:
        return torch.full((self.modules, *shape), value, dtype=torch.float64)


class TwoLayers(Router):
    """The paper's (Section 4.1): w(r) = W2 relu(W1 r + b1) + b2 with 2 N hidden units; 4 N² + 3 N parameters for T = N.

    W1 and W2 are drawn from N(0, 0.01²), b1 is 0 and b2 lambda, so that training starts near task arithmetic.
    """

    @property
    def inputs(self) -> int:
        """Entries of what the first layer sees."""
        return self.tasks

    def features(self, preference_T: torch.Tensor) -> torch.Tensor:
        """What the first layer sees of a preference."""
        return preference_T

    def initial(self, generator: np.random.Generator) -> Parameters:
        """Normal matrices, and biases that make it task arithmetic."""
        hidden = 2 * self.models
        return {
            "first.weight": self._normal(generator, hidden, self.inputs),
            "first.bias": self._constant(0.0, hidden),
            "second.weight": self._normal(generator, self.models, hidden),
            "second.bias": self._constant(self.scaling, self.models),
        }

    def weights(self, parameters: Parameters, preference_T: torch.Tensor) -> torch.Tensor:
        """Two layers with a ReLU between them; no softmax."""
        hidden_GH = torch.relu(parameters["first.weight"] @ self.features(preference_T) + parameters["first.bias"])
        return (parameters["second.weight"] @ hidden_GH.unsqueeze(-1)).squeeze(-1) + parameters["second.bias"]


class Linear(Router):
    """One layer: w(r) = W r + b, which can follow a preference but not bend."""

    def initial(self, generator: np.random.Generator) -> Parameters:
        """A normal matrix, and lambda."""
        return {
            "weight": self._normal(generator, self.models, self.tasks),
            "bias": self._constant(self.scaling, self.models),
        }

    def weights(self, parameters: Parameters, preference_T: torch.Tensor) -> torch.Tensor:
        """One matrix and a bias."""
        return parameters["weight"] @ preference_T + parameters["bias"]


class SoftmaxOptions(PluginOptions):
    """Options of the softmax router."""

    temperature: float = Field(1.0, gt=0, description="Higher: closer to equal routing weights.")


class Softmax(TwoLayers):
    """Positive weights with a learned sum: w = s softmax(z / temperature), z the two layers'; s starts at N lambda."""

    Options: ClassVar[type[PluginOptions]] = SoftmaxOptions

    def initial(self, generator: np.random.Generator) -> Parameters:
        """Those of the two layers without an offset, and the logarithm of the sum."""
        drawn = super().initial(generator)
        drawn["second.bias"] = self._constant(0.0, self.models)
        return drawn | {"log_sum": self._constant(math.log(self.models * self.scaling), 1)}

    def weights(self, parameters: Parameters, preference_T: torch.Tensor) -> torch.Tensor:
        """The sum times the softmax."""
        z_GN = super().weights(parameters, preference_T)
        return parameters["log_sum"].exp() * torch.softmax(z_GN / self.options.temperature, dim=-1)


class FourierOptions(PluginOptions):
    """Options of the router with Fourier features."""

    frequencies: int = Field(2, ge=1, description="Sines and cosines of pi k r for k = 1 to this.")


class Fourier(TwoLayers):
    """The two layers on r and the sines and cosines of its entries, which can bend more often along the simplex."""

    Options: ClassVar[type[PluginOptions]] = FourierOptions

    @property
    def inputs(self) -> int:
        """r itself, then a sine and a cosine of each entry and frequency."""
        return self.tasks * (1 + 2 * self.options.frequencies)

    def features(self, preference_T: torch.Tensor) -> torch.Tensor:
        """r, sin(pi k r), cos(pi k r)."""
        angles = torch.cat([math.pi * (k + 1) * preference_T for k in range(self.options.frequencies)])
        return torch.cat([preference_T, angles.sin(), angles.cos()])
