"""Every router: near lambda at the start, differentiable, and the paper's numbers of parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergecore.errors import InputError
from mergecore.pareto_moe import ROUTERS
from mergecore.pareto_moe.routers import Router
from tests.mergecore.pareto_moe.conftest import plan_of


def build(
    name: str, *, modules: int = 5, tasks: int = 3, models: int = 3, scaling: float = 0.3, **options: object
) -> Router:
    return plan_of(modules, tasks, models, router=name, scaling=scaling, options=options).build()


@pytest.mark.parametrize("name", list(ROUTERS))
class TestContract:
    @pytest.mark.parametrize(("tasks", "models"), [(2, 2), (3, 3), (4, 2), (1, 3)])
    def test_starts_near_task_arithmetic_everywhere(self, name: str, tasks: int, models: int) -> None:
        router = build(name, tasks=tasks, models=models)
        parameters = router.initial(np.random.default_rng(0))
        for r in np.random.default_rng(1).dirichlet(np.ones(tasks), size=20):
            weights_GN = router.weights(parameters, torch.from_numpy(r))
            assert weights_GN.shape == (5, models)
            assert weights_GN.dtype == torch.float64
            assert (weights_GN - 0.3).abs().max() < 0.05

    def test_modules_do_not_share_parameters(self, name: str) -> None:
        router = build(name)
        parameters = router.initial(np.random.default_rng(0))
        r = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
        before = router.weights(parameters, r)
        for tensor in parameters.values():
            tensor[2] += 0.1
        after = router.weights(parameters, r)
        changed = [not torch.equal(before[g], after[g]) for g in range(5)]
        assert changed == [False, False, True, False, False]

    def test_gradients_are_numerical_derivatives(self, name: str) -> None:
        router = build(name, modules=2)
        parameters = {k: v.requires_grad_(True) for k, v in router.initial(np.random.default_rng(3)).items()}
        r = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
        names = list(parameters)
        assert torch.autograd.gradcheck(
            lambda *tensors: router.weights(dict(zip(names, tensors, strict=True)), r), list(parameters.values())
        )

    def test_repeats_for_a_seed(self, name: str) -> None:
        router = build(name)
        one, two = (router.initial(np.random.default_rng(7)) for _ in range(2))
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(("models", "parameters"), [(2, 22), (3, 45), (8, 280)])
def test_the_papers_router_has_4_n_squared_plus_3_n_parameters(models: int, parameters: int) -> None:
    assert build("mlp", tasks=models, models=models).size() == parameters == 4 * models**2 + 3 * models


def test_the_papers_router_is_its_formula() -> None:
    router = build("mlp", modules=2)
    p = router.initial(np.random.default_rng(0))
    p = {name: torch.randn(tensor.shape, dtype=torch.float64) for name, tensor in p.items()}
    r = np.array([0.2, 0.5, 0.3])
    for g in range(2):
        w1, b1, w2, b2 = (p[k][g].numpy() for k in ("first.weight", "first.bias", "second.weight", "second.bias"))
        assert (w1.shape, w2.shape) == ((6, 3), (3, 6))
        expected = w2 @ np.maximum(w1 @ r + b1, 0) + b2
        np.testing.assert_allclose(router.weights(p, torch.from_numpy(r))[g].numpy(), expected, rtol=1e-12)


def test_initial_matrices_have_the_papers_spread() -> None:
    drawn = build("mlp", modules=200).initial(np.random.default_rng(0))
    for name in ("first.weight", "second.weight"):
        assert drawn[name].std().item() == pytest.approx(0.01, rel=0.05)
    assert not drawn["first.bias"].any()
    assert (drawn["second.bias"] == 0.3).all()


def test_the_softmax_router_keeps_its_sum_and_its_temperature() -> None:
    router = build("softmax", temperature=0.5)
    parameters = router.initial(np.random.default_rng(0))
    parameters["second.bias"] = torch.randn(5, 3, dtype=torch.float64)
    r = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    weights = router.weights(parameters, r)
    np.testing.assert_allclose(weights.sum(dim=1).numpy(), 0.9)
    colder = build("softmax", temperature=0.1).weights(parameters, r)
    assert (colder.max(dim=1).values > weights.max(dim=1).values).all()


def test_unknown_routers_and_options_are_named() -> None:
    with pytest.raises(InputError, match="Did you mean 'softmax'"):
        build("softmx")
    with pytest.raises(InputError, match="temprature"):
        build("softmax", temprature=1.0)
