"""Gradients in merged weights and in coefficients, against autograd on a copy and numerical derivatives."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.gradients import CoefficientGradients, MergedGradients
from mergecore.merging.adamerging import entropy
from mergecore.study import Study, prepare
from mergecore.task_matrix import Factors, TaskMatrix, open_task_matrix

ROWS = np.arange(12)
C = np.array([0.4, 0.7])


def study_of(pico_config: dict[str, Any], home: Path, **changes: Any) -> Study:
    return prepare(parse_config({**pico_config, **changes}), home)


def loss(evaluator: Any, candidate: Any) -> torch.Tensor:
    found: torch.Tensor = evaluator.loss(candidate, ROWS)
    return found


def test_the_loss_is_that_of_a_measurement(pico_config: dict, home: Path) -> None:
    study = study_of(pico_config, home)
    gradients = MergedGradients(study)
    gradients.merge(C)
    everything = np.arange(study.measured[0].examples)
    found = gradients.add(0, lambda evaluator, candidate: evaluator.loss(candidate, everything))
    (outcome,) = CandidateEvaluator(study).evaluate(C, [0])
    assert found == pytest.approx(outcome.metrics["cross_entropy"], rel=1e-6)


def test_weight_gradients_are_those_of_a_copy(pico_config: dict, home: Path) -> None:
    study = study_of(pico_config, home)
    gradients = MergedGradients(study)
    gradients.merge(C)
    network = gradients.candidate(0).module()
    module = copy.deepcopy(network).requires_grad_(True)
    places = {parameter.storage_offset(): name for name, parameter in network.named_parameters()}
    gradients.add(0, loss)
    evaluator: Any = gradients.evaluators.evaluator(0)
    images = evaluator._images
    logits = module(torch.from_numpy(np.array(images.x[ROWS]))).logits
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(np.array(images.y[ROWS]))).backward()
    own = dict(module.named_parameters())
    matrix = gradients.evaluators.matrix
    for entry in matrix.layout.entries:
        found = gradients.gradient_P[entry.offset : entry.offset + entry.size].view(entry.shape)
        torch.testing.assert_close(found, own[places[entry.offset]].grad, rtol=1e-4, atol=1e-7)


def test_losses_of_several_tasks_add_up_and_a_merge_starts_again(pico_config: dict, home: Path) -> None:
    gradients = MergedGradients(study_of(pico_config, home))
    gradients.merge(C)
    gradients.add(0, loss)
    once = gradients.gradient_P.clone()
    gradients.add(1, loss)
    torch.testing.assert_close(gradients.gradient_P, 2 * once)  # both tasks have the same data
    gradients.merge(C)
    assert not gradients.gradient_P.any()
    gradients.add(0, loss)
    assert torch.equal(gradients.gradient_P, once)


def part(name: str) -> str | None:
    """Two blocks, and tensors that have none."""
    return "head" if "classifier" in name else "body" if "layer" in name else None


@pytest.mark.parametrize("loss_of", [loss, lambda e, c: entropy(e, c, ROWS)], ids=["cross-entropy", "entropy"])
def test_coefficient_gradients_are_numerical_derivatives(pico_config: dict, home: Path, loss_of: Any) -> None:
    gradients = CoefficientGradients(study_of(pico_config, home), part)
    gradients.merge_all(C)
    place_of = {name: g for g, name in enumerate(gradients.blocks.names)}
    assert place_of.keys() == {"head", "body"}

    def value(c_GN: np.ndarray) -> float:
        gradients.merge_blocks(c_GN)
        return gradients.gradient(0, loss_of)[0]

    c_GN = np.array([[0.4, 0.7], [0.2, 0.9]])
    gradients.merge_blocks(c_GN)
    _, found = gradients.gradient(0, loss_of)
    step = 1e-2
    for place in np.ndindex(2, 2):
        move = np.zeros((2, 2))
        move[place] = step
        numerical = (value(c_GN + move) - value(c_GN - move)) / (2 * step)
        assert found[place] == pytest.approx(numerical, rel=2e-2, abs=2e-4)


def test_coefficient_gradients_are_inner_products_of_weight_gradients(pico_config: dict, home: Path) -> None:
    """The slow twin: the whole gradient in the weights, and every task vector in full."""
    study = study_of(pico_config, home)
    whole = MergedGradients(study)
    whole.merge(C)
    expected_loss = whole.add(0, loss)
    matrix = whole.evaluators.matrix
    expected: dict[str, np.ndarray] = {}
    for index, entry in enumerate(matrix.layout.entries):
        own = whole.gradient_P[entry.offset : entry.offset + entry.size].double()
        products = matrix.differences(index).reshape(2, -1).double() @ own
        if (name := part(entry.name)) is not None:
            expected[name] = expected.get(name, np.zeros(2)) + products.numpy()
    gradients = CoefficientGradients(study, part)
    gradients.merge_all(C)
    found_loss, found_GN = gradients.gradient(0, loss)
    assert found_loss == expected_loss
    for g, name in enumerate(gradients.blocks.names):
        np.testing.assert_allclose(found_GN[g], expected[name], rtol=1e-4, atol=1e-7)


def test_tensors_without_a_block_have_no_gradient_and_stay_as_they_are(pico_config: dict, home: Path) -> None:
    gradients = CoefficientGradients(study_of(pico_config, home), part)
    gradients.merge_all(C)
    before = gradients.evaluators.weights_P.clone()
    gradients.merge_blocks(np.array([[0.1, 0.2], [0.3, 0.4]]))
    gradients.gradient(0, loss)
    matrix = gradients.evaluators.matrix
    network = gradients.candidate(0).module()
    assert all(parameter.grad is None for parameter in network.parameters())
    trained = {parameter.storage_offset() for parameter in network.parameters() if parameter.requires_grad}
    for entry in matrix.layout.entries:
        own = slice(entry.offset, entry.offset + entry.size)
        unchanged = torch.equal(before[own], gradients.evaluators.weights_P[own])
        assert unchanged == (part(entry.name) is None)
        assert (entry.offset in trained) == (part(entry.name) is not None)


def test_an_evaluator_without_a_loss_says_so(pico_config: dict, home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "own_score.py").write_text("def score(candidate):\n    return 0.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    task = {"name": "a", "evaluator": "python", "metric": "score", "direction": "maximize"}
    study = study_of(pico_config, home, tasks=[{**task, "args": {"function": "own_score:score"}}])
    gradients = MergedGradients(study)
    gradients.merge(C)
    with pytest.raises(InputError, match="has no loss that could be differentiated"):
        gradients.add(0, loss)


def low_rank_matrix(folder: Path, pico_config: dict, storage: torch.dtype) -> tuple[TaskMatrix, torch.Tensor]:
    """The pico study's matrix with adapters of two ranks on one tensor, and V in full, [N, P] float64."""
    study = study_of(pico_config, folder)
    dense = open_task_matrix(study.matrix_folder)
    index = next(i for i, e in enumerate(dense.layout.entries) if len(e.shape) == 2 and min(e.shape) > 4)
    entry = dense.layout.entries[index]
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((entry.shape[0], 3), (3, entry.shape[1])))
    owner, scale = torch.tensor([0, 1, 1]), torch.tensor([0.5, 2.0, 2.0])
    entries = tuple(
        type(e)(e.name, e.shape, e.dtype, e.offset, e.tied, True, i == index)
        for i, e in enumerate(dense.layout.entries)
    )
    layout = type(dense.layout)(dense.layout.models, entries, dense.layout.dense_models)
    deltas = dense.deltas_MD.to(storage)
    matrix = TaskMatrix(layout, dense.base_P, deltas, {index: Factors(left, right, owner, scale)}, dense.frozen, "k")
    full = deltas.double().clone()
    for n in range(2):
        own = owner == n
        product = (left[:, own] * scale[own]).double() @ right[own].double()
        full[n, entry.offset : entry.offset + entry.size] += product.reshape(-1)
    return matrix, full


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_pull_back_and_differences_are_those_of_the_expanded_matrix(
    pico_config: dict, home: Path, storage: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mergecore.task_matrix.TILE", 64)
    matrix, full_NP = low_rank_matrix(home, pico_config, storage)
    for index, entry in enumerate(matrix.layout.entries):
        own = slice(entry.offset, entry.offset + entry.size)
        gradient = torch.randn(entry.shape, generator=torch.Generator().manual_seed(index))
        expected = (full_NP[:, own] @ gradient.double().reshape(-1)).numpy()
        np.testing.assert_allclose(matrix.pull_back(index, gradient).numpy(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            matrix.differences(index).reshape(2, -1).numpy(), full_NP[:, own].numpy(), rtol=1e-5, atol=1e-6
        )
