"""Routing weights and distances of modules against the obvious loops."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import mergecore.pareto_moe.analysis as analysis
from mergecore.checkpoints.checkpoint import from_state_dict
from mergecore.pareto_moe.analysis import dissimilarity, routing_table
from mergecore.pareto_moe.training import RouterTraining
from mergecore.pareto_moe.training_options import TrainingOptions
from mergecore.pareto_moe.upscaling import upscale
from mergecore.task_matrix import Entry, Factors, Layout, TaskMatrix, aligned
from mergecore.task_vectors import build_task_matrix
from tests.mergecore.pareto_moe.conftest import plan_of

State = dict[str, torch.Tensor]
SHAPES = {
    "attn.c_attn.weight": (6, 18),
    "attn.c_attn.bias": (18,),
    "mlp.c_fc.weight": (6, 24),
    "mlp.c_proj.weight": (24, 6),
}


def network(seed: int, blocks: int = 12) -> State:
    """Tensors that are named like GPT-2's; twelve blocks, so that 10 must not come before 2."""
    generator = torch.Generator().manual_seed(seed)
    names = {f"h.{block}.{name}": shape for block in range(blocks) for name, shape in SHAPES.items()}
    names |= {"wte.weight": (9, 6), "h.0.ln_1.weight": (6,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in names.items()}


def obvious(base: State, models: list[State], module: str) -> tuple[float, float]:
    """Mean cosine distance and mean root-mean-square distance over all pairs, on one long vector for each model."""
    own = [torch.cat([(m[n] - base[n]).double().flatten() for n in base if n.startswith(f"{module}.")]) for m in models]
    pairs = list(itertools.combinations(own, 2))
    cosine = [1 - float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in pairs]
    return float(np.mean(cosine)), float(np.mean([float((a - b).square().mean().sqrt()) for a, b in pairs]))


@pytest.mark.parametrize("tile", [7, analysis.TILE])
def test_distances_equal_the_obvious_loop(tile: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "TILE", tile)
    base, *models = (network(seed) for seed in range(4))
    named = {f"m{n}": from_state_dict(state) for n, state in enumerate(models)}
    matrix = build_task_matrix(tmp_path, from_state_dict(base), named)
    found = dissimilarity(matrix, upscale(list(base), "attn+mlp"))
    assert found["pairs"] == 3
    assert list(found["kinds"]) == ["attention", "mlp"]
    for kind, part in (("attention", "attn"), ("mlp", "mlp")):
        by_depth = found["kinds"][kind]
        assert by_depth["modules"] == [f"h.{block}.{part}" for block in range(12)]
        assert by_depth["blocks"] == list(range(12))
        expected = np.array([obvious(base, models, module) for module in by_depth["modules"]])
        assert np.allclose(np.transpose([by_depth["cosine"], by_depth["distance"]]), expected, rtol=1e-6, atol=1e-7)


def test_adapters_count_as_the_weights_that_they_make() -> None:
    base = {
        name: tensor for name, tensor in network(0, blocks=2).items() if name.endswith(("c_attn.weight", "c_fc.weight"))
    }
    entries, factors, offset = [], {}, 0
    models = [dict(base), dict(base)]
    generator = torch.Generator().manual_seed(1)
    owner, scale = torch.tensor([0, 1, 1]), torch.tensor([0.5, 2.0, 2.0])
    for index, (name, tensor) in enumerate(base.items()):
        entries.append(Entry(name, tuple(tensor.shape), tensor.dtype, offset, dense=False, low_rank=True))
        offset += aligned(tensor.numel())
        rows, columns = tensor.shape
        left, right = (torch.randn(shape, generator=generator) for shape in ((rows, 3), (3, columns)))
        factors[index] = Factors(left, right, owner, scale)
        for n, model in enumerate(models):
            model[name] = tensor.double() + (left * scale * (owner == n)).double() @ right.double()
    layout = Layout(("a", "b"), tuple(entries), ())
    matrix = TaskMatrix(layout, torch.zeros(offset), torch.zeros(0, 0), factors, {}, "key")
    kinds = dissimilarity(matrix, upscale(list(base), "attn+mlp"))["kinds"]
    for kind, part in (("attention", "attn"), ("mlp", "mlp")):
        expected = np.array([obvious(base, models, f"h.{block}.{part}") for block in range(2)])
        assert np.allclose(
            np.transpose([kinds[kind]["cosine"], kinds[kind]["distance"]]), expected, rtol=1e-5, atol=1e-6
        )


def test_equal_models_and_opposite_ones(tmp_path: Path) -> None:
    base, other = network(0, blocks=2), network(1, blocks=2)
    opposite = {name: 2 * base[name] - other[name] for name in base}
    same = {name: other[name] if "mlp" in name else base[name] for name in base}
    states = {"a": from_state_dict(other), "b": from_state_dict(opposite), "c": from_state_dict(same)}
    matrix = build_task_matrix(tmp_path, from_state_dict(base), states)
    kinds = dissimilarity(matrix, upscale(list(base), "attn+mlp"))["kinds"]
    assert kinds["mlp"]["cosine"] == pytest.approx([4 / 3] * 2, abs=1e-6)  # 2, 0 and 2
    assert kinds["attention"]["cosine"] == pytest.approx([2.0] * 2, abs=1e-6)  # c changes nothing: a and b alone
    apart = (other["h.0.mlp.c_fc.weight"] - base["h.0.mlp.c_fc.weight"]).square().sum()
    apart += (other["h.0.mlp.c_proj.weight"] - base["h.0.mlp.c_proj.weight"]).square().sum()
    assert kinds["mlp"]["distance"][0] == pytest.approx(float((apart / 288).sqrt()) * 4 / 3, rel=1e-5)


def test_a_module_that_one_model_changes_has_no_angle_and_one_that_none_does_is_left_out(tmp_path: Path) -> None:
    base, other = network(0, blocks=3), network(1, blocks=3)
    first = {**base, **{name: other[name] for name in base if name.startswith(("h.1.mlp", "h.2.mlp"))}}
    second = {**base, **{name: -other[name] for name in base if name.startswith("h.2.mlp")}}
    states = {"a": from_state_dict(first), "b": from_state_dict(second)}
    matrix = build_task_matrix(tmp_path, from_state_dict(base), states)
    kinds = dissimilarity(matrix, upscale(list(base), "attn+mlp"))["kinds"]
    assert list(kinds) == ["mlp"]
    assert kinds["mlp"]["modules"] == ["h.1.mlp", "h.2.mlp"]
    assert kinds["mlp"]["cosine"] == [None, pytest.approx(obvious(base, [first, second], "h.2.mlp")[0])]
    assert kinds["mlp"]["distance"][0] == pytest.approx(obvious(base, [first, second], "h.1.mlp")[1])


def test_routing_is_asked_at_the_equal_and_unit_preferences() -> None:
    plan = plan_of(modules=5, tasks=3, models=2)
    options = TrainingOptions(steps=3, batch_size=2)
    training = RouterTraining(plan, options, sizes=(4, 4, 4), seed=1)
    while (step := training.ask()) is not None:
        count = (1, 3)
        training.tell(step, np.ones(count), np.random.default_rng(0).normal(size=(*count, 5, 2)))
    found = routing_table(training, plan.tasks)
    assert list(found) == ["equal", "t0", "t1", "t2"]
    assert found["equal"] == training.routing(np.full(3, 1 / 3)).tolist()
    assert found["t1"] == training.routing(np.array([0.0, 1.0, 0.0])).tolist()
    assert found["t0"] != found["t1"]
