"""Training of routers on losses whose Pareto set is known: l_t(w) = 0.1 + |w - a_t|²."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergecore.errors import NumericalError
from mergecore.pareto_moe.training import RouterTraining, Step, training_key
from mergecore.pareto_moe.training_options import TrainingOptions
from mergecore.pareto_moe.unloading import read_routers
from tests.mergecore.pareto_moe.conftest import plan_of

MODULES = 3
SIZES = (40, 7)
FLOOR = 0.1


def corners(tasks: int) -> np.ndarray:
    """a_t, [T, G, N]: where each task's loss is lowest; as many models as tasks."""
    return np.random.default_rng(5).uniform(0, 1, size=(tasks, MODULES, tasks))


def measure(step: Step, corners_TGN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gaps_MTGN = step.routing_MGN[:, np.newaxis] - corners_TGN
    return FLOOR + (gaps_MTGN**2).sum(axis=(2, 3)), 2 * gaps_MTGN


def new(tasks: int = 2, router: str = "mlp", **options: Any) -> RouterTraining:
    sizes = SIZES if tasks == 2 else (9,) * tasks
    own = {"steps": 40, "batch_size": 4} | options
    return RouterTraining(plan_of(MODULES, tasks, tasks, router=router), TrainingOptions(**own), sizes=sizes, seed=1)


def drive(training: RouterTraining, until: int | None = None, tasks: int = 2) -> RouterTraining:
    a_TGN = corners(tasks)
    while (step := training.ask()) is not None and training.done != until:
        training.tell(step, *measure(step, a_TGN))
    return training


def same(one: RouterTraining, two: RouterTraining) -> bool:
    return all(torch.equal(one.parameters[name], two.parameters[name]) for name in one.parameters)


def test_starts_at_task_arithmetic() -> None:
    step = new().ask()
    assert step is not None
    np.testing.assert_allclose(step.routing_MGN, 0.3, atol=1e-3)


@pytest.mark.parametrize(("router", "tasks"), [("mlp", 2), ("linear", 2), ("linear", 3), ("fourier", 2)])
@pytest.mark.parametrize("count", [1, 4])
def test_linear_scalarisation_learns_the_whole_pareto_set(router: str, tasks: int, count: int) -> None:
    """The Pareto set of these losses is the convex hull of the corners: w(r) = Σ r_t a_t."""
    training = drive(new(tasks, router=router, steps=1500, preferences_per_step=count), tasks=tasks)
    a_TGN, drawn = corners(tasks), np.random.default_rng(0).dirichlet(np.ones(tasks), 5)
    for r in np.vstack([np.eye(tasks), np.full(tasks, 1 / tasks), drawn]):
        np.testing.assert_allclose(training.routing(r), np.tensordot(r, a_TGN, axes=1), atol=0.03)


def test_exact_pareto_search_moves_losses_to_the_inverse_of_the_preference() -> None:
    """On the segment between the corners l_t = floor + s_t² d², so r_1 l_1 = r_2 l_2 has one solution."""
    training = drive(new(steps=2500, scalarisation="epo"))
    a_TGN = corners(2)
    for first in (0.35, 0.5, 0.65):
        r = np.array([first, 1 - first])
        w_GN = training.routing(r)
        losses = FLOOR + ((w_GN - a_TGN) ** 2).sum(axis=(1, 2))
        ratio = losses[0] / losses[1] / (r[1] / r[0])
        assert 0.8 < ratio < 1.25, (first, losses)
    equal = np.abs(training.routing(np.full(2, 0.5)) - a_TGN.mean(axis=0)).max()
    assert equal < 0.03
    assert training.fallbacks <= training.done
    assert training.non_uniformity_S[-200:].mean() < 0.5 * training.non_uniformity_S[:200].mean()


@pytest.mark.parametrize("options", [{}, {"scalarisation": "epo"}, {"weight_decay": 0.01, "preferences_per_step": 3}])
def test_an_interrupted_training_goes_on_to_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    whole = drive(new(**options))
    half = drive(new(**options), until=17)
    half.save(tmp_path / "half.part")
    other = new(**options)
    other.restore(tmp_path / "half.part")
    assert other.done == 17
    assert same(other, half)
    drive(other)
    assert same(other, whole)
    assert np.array_equal(other.losses_ST, whole.losses_ST)
    assert np.array_equal(other.routing_LGN, whole.routing_LGN)
    assert other.fallbacks == whole.fallbacks


def test_what_is_saved_are_the_routers(tmp_path: Path) -> None:
    training = drive(new())
    training.save(tmp_path / "key.safetensors")
    plan, parameters = read_routers(tmp_path / "key.safetensors")
    assert plan == training.plan
    assert all(torch.equal(parameters[name], training.parameters[name]) for name in parameters)
    assert parameters.keys() == training.parameters.keys()


def test_batches_pass_over_all_data_before_they_repeat() -> None:
    training = new(steps=30)
    seen: dict[int, list[int]] = {0: [], 1: []}
    while (step := training.ask()) is not None:
        assert [len(rows) for rows in step.rows[0]] == [4, 4]
        for task, rows in enumerate(step.rows[0]):
            seen[task] += rows.tolist()
        training.tell(step, *measure(step, corners(2)))
    for task, size in enumerate(SIZES):
        for start in range(0, len(seen[task]) - size, size):
            assert sorted(seen[task][start : start + size]) == list(range(size))
    assert seen[0][:40] != seen[0][40:80]


def test_a_batch_is_no_larger_than_the_data() -> None:
    step = new(batch_size=16).ask()
    assert step is not None
    assert [len(rows) for rows in step.rows[0]] == [16, 7]


def test_the_learning_rate_falls_to_a_tenth_on_a_cosine() -> None:
    rates = drive(new(steps=100, learning_rate=0.02)).rate_S
    assert rates[0] == 0.02
    assert rates[50] == pytest.approx(0.011)
    assert rates[-1] == pytest.approx(0.002, rel=0.01)
    assert (np.diff(rates) < 0).all()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_diverging_training_says_so_and_changes_nothing(what: str) -> None:
    training = drive(new(), until=3)
    before = training.parameters
    step = training.ask()
    assert step is not None
    losses, gradients = measure(step, corners(2))
    (losses if what == "loss" else gradients)[0, 1] = np.nan
    with pytest.raises(NumericalError, match=f"the {what} of the task 't1' is not finite in step 3"):
        training.tell(step, losses, gradients)
    assert training.done == 3
    assert all(torch.equal(before[name], training.parameters[name]) for name in before)


def test_the_key_is_of_what_changes_what_is_learned() -> None:
    def key(seed: int = 0, content: Any = "data", **options: Any) -> str:
        found = TrainingOptions(**options)
        return training_key(plan_of(), found, matrix_key="m", content=[content], sizes=SIZES, seed=seed)

    assert key() == key(save_every=7) == key(checkpoint_activations=True)
    others = [key(seed=1), key(content="other"), key(steps=5), key(scalarisation="epo"), key(micro_batch=3)]
    assert len({key(), *others}) == 1 + len(others)
