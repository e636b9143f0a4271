"""Fisher, RegMean and AdaMerging against slow twins from their definitions, on a pico vision transformer and GPT-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.merging.adamerging import AdaMergingOptions, LayerWise, TaskWise
from mergecore.merging.base import merge_study
from mergecore.merging.fisher import Fisher, FisherOptions
from mergecore.merging.regmean import RegMean, RegMeanOptions
from mergecore.study import Study, prepare
from mergecore.task_matrix import open_task_matrix
from tests.mergecore.merging.test_contract import two_models

State = dict[str, torch.Tensor]


def network(pico_config: dict[str, Any], number: int) -> torch.nn.Module:
    from transformers import ViTForImageClassification

    loaded = ViTForImageClassification.from_pretrained(pico_config["models"][number]["source"])
    return loaded.eval()


def file_names(pico_config: dict[str, Any]) -> dict[str, str]:
    """Name in the network to name in the file, which may differ, by content."""
    state = load_file(Path(pico_config["models"][0]["source"]) / "model.safetensors")
    return {
        own: next(key for key, tensor in state.items() if tensor.shape == p.shape and torch.equal(tensor, p))
        for own, p in network(pico_config, 0).named_parameters()
    }


def data(pico_config: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    arrays = np.load(pico_config["tasks"][0]["dataset"]["path"])
    return torch.from_numpy(arrays["x_validation"]), torch.from_numpy(arrays["y_validation"])


def merged(study: Study, name: str, **options: Any) -> State:
    """theta of the merge, by name."""
    found = merge_study(study, name, options)
    matrix = open_task_matrix(found.matrix_folder)
    return {key: tensor.clone() for key, tensor in matrix.named(matrix.merge([1.0])).items()}


def test_fisher_is_the_mean_weighted_by_squared_gradients(pico_config: dict, home: Path) -> None:
    found = merged(two_models(pico_config, home), "fisher", floor=1e-12)
    x, y = data(pico_config)
    fishers, states = [], []
    for n in range(2):
        model = network(pico_config, n)
        fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for i in range(len(x)):  # 40 examples, fewer than the option allows
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(x[i : i + 1]).logits, y[i : i + 1]).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                fisher[name] += parameter.grad**2 / len(x)
        fishers.append(fisher)
        states.append(dict(model.named_parameters()))
    most = max(float(fisher.max()) for found_fishers in fishers for fisher in found_fishers.values())
    for name, key in file_names(pico_config).items():
        weight = torch.stack([fisher[name] for fisher in fishers]).double()
        values = torch.stack([state[name].detach() for state in states]).double()
        usable = weight.sum(dim=0) > 1e-8 * most
        expected = (weight * values).sum(dim=0) / weight.sum(dim=0)
        torch.testing.assert_close(found[key].double()[usable], expected[usable], rtol=1e-3, atol=1e-4)


def test_fisher_takes_the_mean_where_no_loss_depends_on_a_weight(pico_config: dict, home: Path) -> None:
    """Softmax takes no notice of a bias that all keys share, so what its gradients say is rounding."""
    study = two_models(pico_config, home)
    found, plain = merged(study, "fisher"), open_task_matrix(study.matrix_folder)
    mean = {key: tensor.clone() for key, tensor in plain.named(plain.merge([0.5, 0.5])).items()}
    (bias,) = (key for key in found if key.endswith("attention.key.bias"))
    torch.testing.assert_close(found[bias], mean[bias], rtol=1e-3, atol=1e-4)


def test_weights_that_no_loss_depends_on_are_averaged() -> None:
    fisher = Fisher(FisherOptions())
    entry = type("E", (), {"offset": 0, "size": 4})()
    fisher._entries, fisher._fishers_NP = {"w": entry}, torch.zeros(2, 4)
    deltas = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 0.0]])
    torch.testing.assert_close(fisher.tensor(deltas, deltas[0], name="w"), torch.full((4,), 2.0))


def test_regmean_is_the_least_squares_fit_to_the_models_outputs(pico_config: dict, home: Path) -> None:
    """Without shrinking, the merged layer is what least squares on both models' inputs and outputs gives."""
    found = merged(two_models(pico_config, home), "regmean", shrink=1.0)
    x, _ = data(pico_config)
    base = load_file(Path(pico_config["base"]) / "model.safetensors")
    inputs: dict[str, list[torch.Tensor]] = {}
    models = [network(pico_config, n) for n in range(2)]
    for model in models:
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, given, name=name: inputs.setdefault(name, []).append(
                    given[0].detach().reshape(-1, given[0].shape[-1]).double()
                )
            )
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear)
        ]
        with torch.no_grad():
            model(x)
        for hook in hooks:
            hook.remove()
    names = file_names(pico_config)
    for name, (first, second) in inputs.items():
        weights = [model.get_submodule(name).weight.detach().double() for model in models]
        targets = torch.cat([first @ weights[0].T, second @ weights[1].T])
        expected = torch.linalg.lstsq(torch.cat([first, second]), targets).solution.T
        torch.testing.assert_close(found[names[f"{name}.weight"]].double(), expected, rtol=1e-3, atol=1e-3)
        bias = torch.stack([model.get_submodule(name).bias.detach() for model in models]).mean(dim=0)
        torch.testing.assert_close(found[names[f"{name}.bias"]], bias)
    assert len(inputs) >= 7
    assert not torch.equal(found["vit.layernorm.weight"], base["vit.layernorm.weight"])


def test_shrinking_to_the_diagonal_weights_inputs_one_by_one() -> None:
    merge = RegMean(RegMeanOptions(shrink=0.0))
    merge._grams = [{"w": torch.tensor([[4.0, 3.0], [3.0, 9.0]]).double()}, {"w": torch.eye(2).double()}]
    deltas = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]])
    found = merge.tensor(deltas, deltas[0], name="w")
    torch.testing.assert_close(found, torch.tensor([[4 / 5, 9 / 10]]))


def test_regmean_of_transposed_layers(tmp_path: Path, home: Path) -> None:
    """GPT-2's Conv1D keeps weights [in, out]; the outputs on one model's inputs alone must be that model's."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16, num_labels=2, pad_token_id=0)
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(config).eval()
    weight = model.transformer.h[0].mlp.c_fc.weight.detach()
    merge = RegMean(RegMeanOptions(shrink=1.0))
    x_nI = torch.randn(50, 8).double()
    merge._grams = [{"w": x_nI.T @ x_nI}, {"w": torch.zeros(8, 8).double()}]
    merge._input_first = {"w"}
    found = merge.tensor(torch.stack([weight, 0 * weight]), weight, name="w")
    torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("cls", "name"), [(TaskWise, "adamerging_task"), (LayerWise, "adamerging_layer")])
def test_adamerging_lowers_the_entropy_by_adams_steps(cls: type, name: str, pico_config: dict, home: Path) -> None:
    study = two_models(pico_config, home)
    matrix = open_task_matrix(study.matrix_folder)
    options = AdaMergingOptions(steps=4, batch_size=40, learning_rate=0.05)
    merge = cls(options)
    merge.prepare(study, matrix)

    # the twin: coefficients as tensors of an ordinary graph
    x, _ = data(pico_config)
    groups = 1 if cls is TaskWise else len(matrix.layout.entries)
    c = torch.full((groups, 2), 0.3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([c], lr=0.05)
    module, names = network(pico_config, 0), file_names(pico_config)
    rng = np.random.default_rng(0)
    entropies = []
    for _ in range(4):
        weights = {}
        for index, entry in enumerate(matrix.layout.entries):
            row = c[0 if groups == 1 else index].float()
            weights[entry.name] = matrix.base(index) + torch.einsum("n...,n->...", matrix.differences(index), row)
        total = torch.zeros(())
        for _task in range(2):
            rows = rng.integers(40, size=40)
            own = {name: weights[key] for name, key in names.items()}
            p = torch.func.functional_call(module, own, (x[rows],)).logits.softmax(dim=1)
            total = total - (p * p.log()).sum(dim=1).mean()
        entropies.append(float(total.detach()))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        with torch.no_grad():
            c.clamp_(0, 1)
    np.testing.assert_allclose(merge.coefficients_GN, c.detach().numpy(), atol=2e-3)
    assert np.ptp(merge.coefficients_GN) > 0.001


def test_labels_are_not_read(pico_config: dict, home: Path, tmp_path: Path) -> None:
    one = column_bits(pico_config, tmp_path / "one")
    path = pico_config["tasks"][0]["dataset"]["path"]
    arrays = dict(np.load(path))
    arrays["y_validation"] = arrays["y_validation"][::-1].copy()
    np.savez(path, **arrays)
    assert one == column_bits(pico_config, tmp_path / "two")


def column_bits(pico_config: dict[str, Any], home: Path) -> bytes:
    found = merge_study(two_models(pico_config, home), "adamerging_task", {"steps": 2})
    return (found.matrix_folder / "deltas.bin").read_bytes()


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_each_model_needs_a_task(name: str, pico_config: dict, home: Path) -> None:
    with pytest.raises(InputError, match=f"The merge '{name}' needs data that each model was fine-tuned for"):
        merge_study(prepare(parse_config(pico_config), home), name)


def test_held_out_data_takes_no_part(pico_config: dict, home: Path, tmp_path: Path) -> None:
    def keys() -> list[str]:
        study = two_models(pico_config, tmp_path / "home")
        return [merge_study(study, name, options).matrix_key for name, options in QUICK]

    QUICK = (("fisher", {"examples": 4}), ("regmean", {"examples": 4}), ("adamerging_task", {"steps": 1}))
    before = keys()
    path = pico_config["tasks"][0]["dataset"]["path"]
    arrays = dict(np.load(path))
    arrays["x_test"] = arrays["x_test"] + 1
    np.savez(path, **arrays)
    assert keys() == before
