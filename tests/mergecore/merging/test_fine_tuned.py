"""Training of all weights: it lowers what it is told to lower, on the data it is told to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergecore.config_file import parse_config
from mergecore.errors import InputError, NumericalError
from mergecore.evaluation import CandidateEvaluator
from mergecore.merging.base import merge_study
from mergecore.study import Study, prepare
from tests.mergecore.merging.test_contract import column

METHODS = ("ls", "epo", "mgda")


@pytest.fixture
def plain(pico_config: dict[str, Any], home: Path, tmp_path: Path) -> Study:
    """The pico study with data of its own for each task, so that the tasks compete."""
    tasks = []
    for seed, name in enumerate(("first", "second")):
        rng = np.random.default_rng(seed)
        arrays = {}
        for split in ("train", "validation"):
            arrays |= {f"x_{split}": rng.normal(size=(24, 1, 8, 8)).astype(np.float32)}
            arrays |= {f"y_{split}": rng.integers(0, 3, 24)}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        dataset = {"path": str(tmp_path / f"{name}.npz"), "split": "validation", "train_split": "train"}
        tasks.append({"name": name, "dataset": dataset, "metric": "cross_entropy"})
    return prepare(parse_config({**pico_config, "tasks": tasks, "compare": {"methods": ["ls"]}}), home)


def losses(study: Study, c: float = 1.0) -> np.ndarray:
    """On the data that was trained on, [T]."""
    found = CandidateEvaluator(study).evaluate([c], study.training_tasks)
    return np.array([outcome.metrics["cross_entropy"] for outcome in found])


def trained(plain: Study, name: str, **options: Any) -> Study:
    return merge_study(plain, name, {"steps": 60, "learning_rate": 5e-3, "batch_size": 24} | options)


def test_training_data_is_apart_from_what_coefficients_are_chosen_on(plain: Study) -> None:
    labels = [plain.measured[i].label for i in plain.training_tasks]
    assert labels == ["first (training data)", "second (training data)"]
    assert plain.search_tasks == [0, 1]


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_losses(plain: Study, name: str) -> None:
    study = trained(plain, name)
    assert (losses(study) < losses(study, 0.0) - 0.05).all()


@pytest.mark.parametrize("name", ["ls", "epo"])
def test_the_preference_decides_whose_loss_is_low(plain: Study, name: str) -> None:
    first, second = (losses(trained(plain, name, preference=r)) for r in ([0.9, 0.1], [0.1, 0.9]))
    assert first[0] < second[0]
    assert second[1] < first[1]


def test_exact_search_brings_losses_into_the_preferences_proportions(plain: Study) -> None:
    r = np.array([0.75, 0.25])
    found = {name: losses(trained(plain, name, preference=r.tolist(), steps=60)) * r for name in ("ls", "epo")}
    uneven = {name: abs(np.log(weighted[0] / weighted[1])) for name, weighted in found.items()}
    assert uneven["epo"] < 0.5 * uneven["ls"], uneven


@pytest.mark.parametrize("name", METHODS)
def test_it_starts_where_it_is_told(plain: Study, name: str) -> None:
    still = {"steps": 1, "learning_rate": 1e-12}
    assert column(trained(plain, name, **still)).abs().max() < 1e-6
    average = column(trained(plain, name, start="average", **still))
    expected = column(merge_study(plain, "slerp"))
    assert torch.nn.functional.cosine_similarity(average, expected).item() > 0.95


@pytest.mark.parametrize("preference", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_what_is_no_preference_is_refused(plain: Study, preference: list[float]) -> None:
    with pytest.raises(InputError, match="is not one number from 0 for each of 2 tasks"):
        trained(plain, "ls", preference=preference)


@pytest.mark.parametrize("name", METHODS)
def test_a_diverging_training_says_so(plain: Study, name: str) -> None:
    with pytest.raises(NumericalError, match=r"diverged|not finite"):
        trained(plain, name, learning_rate=1e30)
