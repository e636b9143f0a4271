"""A new last layer for a merged network, fitted on its own features.

The merge moves the features away from what any parent's head was trained on; MAP (https://arxiv.org/abs/2406.07529,
appendix D.5) fits the heads of merged ResNets again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize

from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate

Method = Literal["closed_form", "logistic"]
TOLERANCE = 1e-6
ITERATIONS = 500


def output_layer(candidate: Candidate, module: torch.nn.Module, images_bCHW: torch.Tensor) -> str:
    """Name of the linear layer whose output is the network's.

    Raises:
        InputError: there is none.
    """
    seen: list[tuple[str, torch.Tensor]] = []
    with contextlib.ExitStack() as stack:
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.Linear):
                hook = layer.register_forward_hook(lambda _, __, output, name=name: seen.append((name, output)))
                stack.callback(hook.remove)
        with candidate.forward():
            logits_bC = logits_of(module(images_bCHW))
    # a candidate of NaNs is no network without a head
    if not seen or not torch.allclose(seen[-1][1].float(), logits_bC.float(), equal_nan=True):
        raise InputError("The network does not end in a linear layer, so 'refit_head' has nothing to fit.")
    return seen[-1][0]


@contextlib.contextmanager
def features_into(module: torch.nn.Module, layer: str, found: list[torch.Tensor]) -> Iterator[None]:
    """In the block, each forward pass leaves what ``layer`` is given in ``found``."""
    hook = module.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        yield
    finally:
        hook.remove()


def fit_head(
    features_nD: torch.Tensor, labels_n: torch.Tensor, *, classes: int, method: Method, ridge: float, bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [C, D] and biases [C] in float64 (zeros without ``bias``, which is never penalised).

    * ``closed_form`` minimises Σ‖onehot(y) − W x − b‖² + ridge·‖W‖²: right for accuracy, but its outputs are no
      log-probabilities.
    * ``logistic`` minimises Σ cross-entropy + ½·ridge·‖W‖², by L-BFGS from zero.

    Args:
        features_nD: [n, D].
        labels_n: [n] class numbers below ``classes``.
        classes: C.
        method: see above.
        ridge: > 0, so that the minimum is unique.
        bias: whether there is b.
    """
    x_nD = features_nD.double()
    target_nC = torch.nn.functional.one_hot(labels_n, classes).double()
    fit = _closed_form if method == "closed_form" else _logistic
    return fit(x_nD, target_nC, ridge, bias)


def logits_of(output: object) -> torch.Tensor:
    """The logits in what a classifier returned: a tensor, or an object of transformers that holds them."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise InputError("The network returns no logits [batch, classes], so it is no classifier.")
    return logits


def _closed_form(
    x_nD: torch.Tensor, target_nC: torch.Tensor, ridge: float, bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal equations of the centred problem."""
    mean_D, mean_C = x_nD.mean(0) * bias, target_nC.mean(0) * bias
    x_nD, target_nC = x_nD - mean_D, target_nC - mean_C
    gram_DD = x_nD.T @ x_nD
    gram_DD.diagonal().add_(ridge)
    w_CD = torch.cholesky_solve(x_nD.T @ target_nC, torch.linalg.cholesky(gram_DD)).T
    return w_CD.contiguous(), mean_C - w_CD @ mean_D


def _logistic(
    x_nD: torch.Tensor, target_nC: torch.Tensor, ridge: float, bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    count, classes = target_nC.shape
    width = x_nD.shape[1]

    def parts(flat: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.from_numpy(flat).to(x_nD.device).view(classes, width + 1)
        return both[:, :width], both[:, width]

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w_CD, b_C = parts(flat)
        log_p_nC = torch.log_softmax(x_nD @ w_CD.T + b_C, dim=1)
        loss = -(target_nC * log_p_nC).sum() + ridge / 2 * w_CD.square().sum()
        error_nC = log_p_nC.exp() - target_nC
        gradient = torch.cat([error_nC.T @ x_nD + ridge * w_CD, error_nC.sum(0)[:, None] * bias], dim=1)
        return float(loss) / count, gradient.cpu().numpy().ravel() / count

    start = np.zeros(classes * (width + 1))
    options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "gtol": TOLERANCE, "ftol": 0.0}
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    w_CD, b_C = parts(np.ascontiguousarray(found.x))
    return w_CD.contiguous(), b_C.contiguous()
