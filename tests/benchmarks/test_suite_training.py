"""How the suites' models are trained: repeatable, by recipes, with heads of logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.suites.resnet20 import ResNet20
from benchmarks.suites.training import fit_aloud, fit_jointly, joint, linear_probe, recipe_folder
from mergecore.training import Training, repeatable


def test_every_fact_of_a_recipe_has_a_folder_of_its_own(tmp_path: Path) -> None:
    training = Training(steps=3, batch=2, learning_rate=0.1)
    folder = recipe_folder(tmp_path, "some", training, ["a", "b"], 0)
    assert recipe_folder(tmp_path, "some", Training(3, 2, 0.1), ["a", "b"], 0) == folder
    others = [
        recipe_folder(tmp_path, "other", training, ["a", "b"], 0),
        recipe_folder(tmp_path, "some", Training(3, 2, 0.2), ["a", "b"], 0),
        recipe_folder(tmp_path, "some", training, ["b", "a"], 0),
        recipe_folder(tmp_path, "some", training, ["a", "b"], 1),
    ]
    assert len({folder, *others}) == 5


def test_fit_minimises_over_every_example_and_repeats_to_the_bit() -> None:
    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    wanted = inputs @ torch.tensor([1.0, -2.0, 3.0, 0.5])

    def trained() -> tuple[torch.Tensor, set[int]]:
        seen: set[int] = set()
        with repeatable(0):
            layer = torch.nn.Linear(4, 1, bias=False)

            def loss_of(members: torch.Tensor) -> torch.Tensor:
                seen.update(members.tolist())
                return ((layer(inputs[members])[:, 0] - wanted[members]) ** 2).mean()

            fit_aloud(loss_of, list(layer.parameters()), 50, Training(300, 10, 0.1), seed=0, label="test")
        return layer.weight.detach()[0], seen

    weight, seen = trained()
    assert seen == set(range(50))
    assert torch.allclose(weight, torch.tensor([1.0, -2.0, 3.0, 0.5]), atol=1e-3)
    assert torch.equal(trained()[0], weight)


@pytest.mark.parametrize("tasks", [1, 3, 5, 8])
def test_a_joint_recipe_sees_each_task_as_often_as_a_single_model(tasks: int) -> None:
    single = Training(steps=250, batch=64, learning_rate=5e-4)
    found = joint(single, tasks)
    share = found.batch // tasks
    assert found.batch == share * tasks <= single.batch
    assert single.examples <= share * found.steps < single.examples + share
    assert found.learning_rate == single.learning_rate


def test_a_joint_training_serves_every_head_and_leaves_heads_frozen() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes, wanted = {"few": 20, "many": 200}, torch.randn(4, 4, generator=generator)
    inputs = {task: torch.randn(size, 4, generator=generator) for task, size in sizes.items()}
    heads = {task: torch.nn.Linear(4, 2, bias=False).requires_grad_(False) for task in sizes}
    before = {task: head.weight.clone() for task, head in heads.items()}
    labels = {task: heads[task](x @ wanted).argmax(1) for task, x in inputs.items()}
    body = torch.nn.Linear(4, 4)
    drawn_sizes: set[tuple[str, int]] = set()

    def features_of(drawn: Mapping[str, torch.Tensor]) -> torch.Tensor:
        drawn_sizes.update((task, len(members)) for task, members in drawn.items())
        features: torch.Tensor = body(torch.cat([inputs[task][members] for task, members in drawn.items()]))
        return features

    recipe = Training(steps=200, batch=17, learning_rate=0.1)
    with repeatable(0):
        fit_jointly(features_of, heads, labels, list(body.parameters()), recipe, seed=0, label="test")
    assert drawn_sizes == {("few", 8), ("many", 8)}
    for task, x in inputs.items():
        assert torch.equal(heads[task].weight, before[task])
        assert float((heads[task](body(x)).argmax(1) == labels[task]).float().mean()) > 0.85  # chance: 0.5


def test_repeatable_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with repeatable(0):
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)


def test_linear_probe_is_logistic_regression() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 120)
    features = (generator.normal(size=(120, 5)) + labels[:, None]) * [1.0, 10.0, 0.1, 3.0, 1.0] + 7.0
    scaled = (features - features.mean(0)) / features.std(0, ddof=1)
    # its penalty is |w|^2 / 2 beside C times the sum of the losses; ours 1e-3 |w|^2 beside their mean
    other = sklearn.LogisticRegression(C=1 / (2e-3 * 120), max_iter=1000, tol=1e-8).fit(scaled, labels)
    head = linear_probe(torch.tensor(features, dtype=torch.float32), torch.tensor(labels), 3)
    found = head(torch.tensor(features, dtype=torch.float32)).softmax(1).numpy()
    assert np.abs(found - other.predict_proba(scaled)).max() < 5e-3
    assert not head.weight.requires_grad


def test_resnet20_has_the_published_number_of_parameters() -> None:
    network = ResNet20(10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722  # 0.27 M: He et al., Table 6
    x = torch.randn(2, 3, 32, 32)
    network.eval()
    assert torch.equal(network.linear(network.features(x)), network(x))
    assert network.features(x).shape == (2, 64)


@pytest.mark.data
def test_resnet20_with_the_published_weights(real_data: Path) -> None:
    from benchmarks.suites.resnet3 import MEAN, STD, _published

    network = ResNet20(10).eval()
    network.load_state_dict(_published(), strict=False)
    with np.load(real_data / "vision" / "cifar10" / "cifar10.npz") as archive:
        pictures, labels = archive["x_test"], torch.from_numpy(archive["y_test"])
    x = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    with torch.no_grad():
        hits = (network(x).argmax(1) == labels).float().mean()
    assert float(hits) == pytest.approx(0.801, abs=0.002)
