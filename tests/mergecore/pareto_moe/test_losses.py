"""Losses on a network that routers merged: equal to naive autograd, to task arithmetic, and to the unloaded network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.pareto_moe.losses import Batch, RoutedLosses, RoutedStudy, batches, gather
from mergecore.pareto_moe.training import RouterTraining
from mergecore.pareto_moe.training_options import TrainingOptions
from mergecore.pareto_moe.unloading import RouterPlan, Unloading
from mergecore.study import Study, prepare
from mergecore.task_matrix import open_task_matrix

R = np.array([0.3, 0.7])


@pytest.fixture
def study(pico_config: dict[str, Any], home: Path) -> Study:
    return prepare(parse_config(pico_config), home)


def plan_for(study: Study, **changes: Any) -> RouterPlan:
    """A router for each layer norm and each linear layer of the block, and one that owns nothing."""
    names = [entry.name for entry in open_task_matrix(study.matrix_folder).layout.entries]
    owners = {name: name.rpartition(".")[0] for name in names if ".layer." in name or ".layers." in name}
    modules = ("nothing.here", *dict.fromkeys(owners.values()))
    own: dict[str, Any] = {
        "modules": modules,
        "owners": owners,
        "tasks": ("a", "b"),
        "models": study.models,
        "router": "mlp",
        "options": {},
        "scaling": 0.3,
    }
    return RouterPlan(**{**own, **changes})


def training_of(plan: RouterPlan, **options: Any) -> RouterTraining:
    return RouterTraining(plan, TrainingOptions(**({"steps": 5, "batch_size": 6} | options)), sizes=(40, 40), seed=0)


def one_batch(plan: RouterPlan, routing_GN: np.ndarray, size: int = 8) -> Batch:
    return Batch(0, 0, 1.0, routing_GN, np.arange(size))


def bent(plan: RouterPlan) -> np.ndarray:
    return np.random.default_rng(2).uniform(0, 1, size=(len(plan.modules), len(plan.models)))


def test_at_lambda_the_network_is_task_arithmetic_to_the_bit(study: Study) -> None:
    plan = plan_for(study)
    losses = RoutedLosses(RoutedStudy(study, plan))
    found, _ = losses.gradient(one_batch(plan, np.full((len(plan.modules), 2), 0.3)))
    plain = CandidateEvaluator(study)
    plain.merge(np.array([0.3, 0.3]))
    candidate = plain.candidate(np.array([0.3, 0.3]), None)
    assert found == float(plain.evaluator(0).loss(candidate, np.arange(8)))


def test_initial_routers_are_task_arithmetic_nearly(study: Study) -> None:
    plan = plan_for(study)
    training = training_of(plan)
    assert np.abs(training.routing(R) - 0.3).max() < 1e-3
    losses = RoutedLosses(RoutedStudy(study, plan))
    near, _ = losses.gradient(one_batch(plan, training.routing(R)))
    exact, _ = losses.gradient(one_batch(plan, np.full((len(plan.modules), 2), 0.3)))
    assert near == pytest.approx(exact, rel=1e-3)


def test_gradients_are_those_of_naive_autograd(study: Study) -> None:
    """The slow twin: every tensor merged as a differentiable sum, the network called functionally."""
    plan = plan_for(study)
    routing = bent(plan)
    losses = RoutedLosses(RoutedStudy(study, plan))
    found, gradient_GN = losses.gradient(one_batch(plan, routing))

    matrix = open_task_matrix(study.matrix_folder)
    weights = torch.from_numpy(routing).requires_grad_(True)
    plain = CandidateEvaluator(study)
    plain.merge(np.zeros(2))
    network = plain.candidate(np.zeros(2), None).module()
    own = {parameter.storage_offset(): name for name, parameter in network.named_parameters()}
    module = copy.deepcopy(network).double()
    state = {}
    for index, entry in enumerate(matrix.layout.entries):
        block = plan.block_of(entry.name)
        c_N = torch.full((2,), 0.3, dtype=torch.float64) if block is None else weights[plan.modules.index(block)]
        merged = matrix.base(index).double() + torch.einsum("n...,n->...", matrix.differences(index).double(), c_N)
        state[own[entry.offset]] = merged
    assert len(state) == len(own)
    evaluator: Any = plain.evaluator(0)
    images = torch.from_numpy(np.array(evaluator._images.x[:8])).double()
    labels = torch.from_numpy(np.array(evaluator._images.y[:8]))
    expected = torch.nn.functional.cross_entropy(functional_call(module, state, (images,)).logits, labels)
    expected.backward()
    assert weights.grad is not None
    assert found == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient_GN, weights.grad.numpy(), rtol=1e-3, atol=1e-6)
    assert not gradient_GN[0].any(), "a module without tensors has no gradient"
    assert np.abs(gradient_GN[1:]).min() > 0


def test_gradients_are_numerical_derivatives(study: Study) -> None:
    plan = plan_for(study)
    routing = bent(plan)
    losses = RoutedLosses(RoutedStudy(study, plan))
    _, gradient_GN = losses.gradient(one_batch(plan, routing, 40))
    step = 1e-2
    for place in [(1, 0), (3, 1), (len(plan.modules) - 1, 0)]:
        move = np.zeros_like(routing)
        move[place] = step
        high, _ = losses.gradient(one_batch(plan, routing + move, 40))
        low, _ = losses.gradient(one_batch(plan, routing - move, 40))
        assert gradient_GN[place] == pytest.approx((high - low) / (2 * step), rel=2e-2, abs=2e-4)


def test_checkpointed_activations_change_nothing(pico_config: dict[str, Any], home: Path) -> None:
    study = prepare(parse_config(pico_config), home)
    plan = plan_for(study)
    batch = one_batch(plan, bent(plan))
    plain, twice = (RoutedLosses(RoutedStudy(study, plan, again)).gradient(batch) for again in (False, True))
    assert plain[0] == twice[0]
    np.testing.assert_array_equal(plain[1], twice[1])


def test_micro_batches_add_up_to_their_batch(study: Study) -> None:
    plan = plan_for(study)
    step = training_of(plan, preferences_per_step=2).ask()
    assert step is not None
    losses = RoutedLosses(RoutedStudy(study, plan))

    def measure(micro_batch: int | None) -> tuple[np.ndarray, np.ndarray]:
        return gather(step, [(batch, *losses.gradient(batch)) for batch in batches(step, micro_batch)])

    whole, parts = measure(None), measure(4)
    assert [len(batch.rows) for batch in batches(step, 4)] == [4, 2] * 4
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-3, atol=1e-6)
    assert whole[0].shape == (2, 2)
    assert whole[1].shape == (2, 2, len(plan.modules), 2)


def test_unloaded_networks_give_the_routed_losses(study: Study, tmp_path: Path) -> None:
    """The same preference through training's path and through the evaluators' path."""
    plan = plan_for(study)
    training = training_of(plan)
    for tensor in training._parameters.values():
        tensor.data += torch.randn(tensor.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.3
    file = tmp_path / "key.safetensors"
    training.save(file)
    losses = RoutedLosses(RoutedStudy(study, plan))
    routed, _ = losses.gradient(one_batch(plan, training.routing(R), 40))
    (outcome,) = CandidateEvaluator(study.routed(file)).evaluate(R, [0])
    assert outcome.metrics["cross_entropy"] == pytest.approx(routed, rel=1e-6)


def test_unloading_refuses_what_is_no_preference(study: Study) -> None:
    plan = plan_for(study)
    unloading = Unloading(plan, training_of(plan).parameters, open_task_matrix(study.matrix_folder).layout)
    for wrong in ([0.5, 0.6], [1.0], [-0.1, 1.1]):
        with pytest.raises(InputError):
            unloading.coefficients(np.array(wrong))


def test_only_the_rest_is_merged_by_task_arithmetic(study: Study) -> None:
    plan = plan_for(study)
    matrix = open_task_matrix(study.matrix_folder)
    parameters = training_of(plan).parameters
    parameters["second.bias"] += 0.5
    unloading = Unloading(plan, parameters, matrix.layout)
    merged = matrix.named(unloading.merge(matrix, R))
    arithmetic = matrix.named(matrix.merge(np.full(2, 0.3)))
    for entry in matrix.layout.entries:
        assert torch.equal(merged[entry.name], arithmetic[entry.name]) == (plan.block_of(entry.name) is None)
