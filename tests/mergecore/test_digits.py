"""The quickstart's digits: transformations, splits, training that repeats, and the trade-off they exist for."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import qmc

from mergecore import digits
from mergecore.architectures.hub_transformers import quiet_transformers
from mergecore.digits import (
    BASE,
    SPLITS,
    TASKS,
    Training,
    data_file,
    digits_arrays,
    model_folder,
    prepare,
    study_config,
)
from mergecore.errors import InputError
from mergecore.surrogates import fit_quadratic

SHORT = {
    "PRE_TRAINING": Training(steps=3, batch=16, learning_rate=1e-3, weight_decay=0.01),
    "FINE_TUNING": Training(steps=2, batch=16, learning_rate=1e-3, weight_decay=0.0),
}

# where the pixel (row, column) of a transformed image comes from in the upright one
ORIGINS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "upright": lambda row, column: (row, column),
    "rotated": lambda row, column: (7 - row, 7 - column),
    "mirrored": lambda row, column: (row, 7 - column),
    "flipped": lambda row, column: (7 - row, column),
    "quarter_turn": lambda row, column: (column, 7 - row),
    "three_quarter_turn": lambda row, column: (7 - column, row),
    "negative": lambda row, column: (row, column),
    "shifted": lambda row, column: (row, column - 2),
}


@pytest.fixture
def short_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training of a few steps: everything but the quality of the models."""
    for name, training in SHORT.items():
        monkeypatch.setattr(digits, name, training)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> digits.DigitsStudy:
    """Base and two models by the real recipe."""
    return prepare(tmp_path_factory.mktemp("home"), tasks=2)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def load(folder: Path) -> torch.nn.Module:
    from transformers import ViTForImageClassification

    with quiet_transformers():
        return ViTForImageClassification.from_pretrained(folder, local_files_only=True).eval()


def accuracy(model: torch.nn.Module, arrays: dict[str, np.ndarray]) -> float:
    """On the validation split."""
    with torch.inference_mode():
        predicted = model(torch.from_numpy(arrays["x_validation"])).logits.argmax(dim=1).numpy()
    return float((predicted == arrays["y_validation"]).mean())


# data


@pytest.mark.parametrize("task", TASKS)
def test_transformation_moves_every_pixel_where_it_should(task: str) -> None:
    upright, found = digits_arrays("upright", seed=0)["x_test"][:20, 0], digits_arrays(task, seed=0)["x_test"][:20, 0]
    expected = np.full_like(upright, -1)
    for row, column in itertools.product(range(8), range(8)):
        source = ORIGINS[task](row, column)
        if min(source) >= 0:
            expected[:, row, column] = upright[:, source[0], source[1]]
    np.testing.assert_array_equal(found, -expected if task == "negative" else expected)


def test_arrays_have_the_promised_shapes_types_and_range() -> None:
    arrays = digits_arrays("shifted", seed=3)
    assert set(arrays) == {f"{kind}_{split}" for kind in "xy" for split in SPLITS}
    for split in SPLITS:
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        assert (x.shape, x.dtype, y.dtype) == ((len(y), 1, 8, 8), np.float32, np.int64)
        assert (x.min(), x.max()) == (-1, 1)
    assert [len(arrays[f"y_{split}"]) for split in SPLITS] == [718, 629, 450]


def test_split_is_stratified_disjoint_and_the_same_for_every_task() -> None:
    _, labels = digits._load_digits()
    parts = digits.split_indices(labels, seed=0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1797))
    for split, share in zip(SPLITS, (0.4, 0.35, 0.25), strict=True):
        counts, expected = np.bincount(labels[parts[split]]), share * np.bincount(labels)
        assert np.abs(counts - expected).max() <= 1
        for task in TASKS:
            np.testing.assert_array_equal(digits_arrays(task, seed=0)[f"y_{split}"], labels[parts[split]])
    assert set(parts["test"]) != set(digits.split_indices(labels, seed=1)["test"])


def test_rotated_six_looks_like_an_upright_nine() -> None:
    upright, rotated = digits_arrays("upright", seed=0), digits_arrays("rotated", seed=0)
    sixes = rotated["x_validation"][rotated["y_validation"] == 6].reshape(-1, 64)
    distances = ((sixes[:, None] - upright["x_train"].reshape(1, -1, 64)) ** 2).sum(axis=2)
    nearest = upright["y_train"][distances.argmin(axis=1)]
    assert (nearest == 9).mean() > 0.8


# training


def test_each_model_is_good_at_its_task_and_bad_at_the_other(trained: digits.DigitsStudy) -> None:
    arrays = {task: dict(np.load(path, allow_pickle=False)) for task, path in trained.data.items()}
    base = load(trained.base)
    for task, other in (("upright", "rotated"), ("rotated", "upright")):
        model = load(trained.models[task])
        assert accuracy(model, arrays[task]) >= 0.9
        assert accuracy(model, arrays[other]) <= 0.78
        assert 0.7 <= accuracy(base, arrays[task]) <= 0.9


def test_task_vectors_are_small_and_leave_the_head_alone(trained: digits.DigitsStudy) -> None:
    base = load(trained.base).state_dict()
    norm = torch.cat([tensor.flatten() for tensor in base.values()]).norm()
    for folder in trained.models.values():
        vector = {name: tensor - base[name] for name, tensor in load(folder).state_dict().items()}
        ratio = torch.cat([tensor.flatten() for tensor in vector.values()]).norm() / norm
        assert 0.01 < ratio < 0.06
        assert {name for name, tensor in vector.items() if not tensor.any()} == {"classifier.weight", "classifier.bias"}


def test_quadratic_surrogates_predict_merges_they_have_not_seen(trained: digits.DigitsStudy) -> None:
    arrays = [dict(np.load(path)) for path in trained.data.values()]
    model = load(trained.base)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vectors = [
        {name: tensor - base[name] for name, tensor in load(folder).state_dict().items()}
        for folder in trained.models.values()
    ]
    coefficients = np.concatenate([qmc.Sobol(2, seed=0).random(32)[:30], np.random.default_rng(0).random((40, 2))])
    metrics = np.empty((70, 2))
    for row, (first, second) in enumerate(coefficients):
        model.load_state_dict(
            {name: base[name] + first * vectors[0][name] + second * vectors[1][name] for name in base}
        )
        metrics[row] = [accuracy(model, data) for data in arrays]
    assert np.corrcoef(metrics.T)[0, 1] < -0.5
    scores = []
    for task in range(2):
        fit = fit_quadratic(coefficients[:30], metrics[:30, task], lower=0.0, upper=1.0)
        held_out, predicted = metrics[30:, task], fit.surrogate.predict(coefficients[30:])
        scores.append(1 - ((held_out - predicted) ** 2).sum() / ((held_out - held_out.mean()) ** 2).sum())
    assert np.mean(scores) >= 0.953  # what the paper reports for two models


# the cache


@pytest.mark.usefixtures("short_recipe")
def test_weights_do_not_depend_on_what_else_was_trained_or_on_the_caller(tmp_path: Path) -> None:
    at_once = prepare(tmp_path / "one", tasks=["upright", "negative"])
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            prepare(tmp_path / "two", tasks=["negative"])
            later = prepare(tmp_path / "two", tasks=["rotated", "upright", "negative"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert tree(at_once.base) == tree(later.base)
    for task in at_once.models:
        assert tree(at_once.models[task]) == tree(later.models[task])
        assert at_once.data[task].read_bytes() == later.data[task].read_bytes()
    assert tree(later.models["rotated"]) != tree(later.models["upright"])


@pytest.mark.usefixtures("short_recipe")
def test_second_call_trains_nothing_and_touches_nothing(tmp_path: Path) -> None:
    study = prepare(tmp_path, tasks=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    heard: list[tuple[str, float]] = []
    assert prepare(tmp_path, tasks=2, progress=lambda *news: heard.append(news)) == study
    assert heard == [("ready", 1.0)]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert list(prepare(tmp_path, tasks=3).models) == ["upright", "rotated", "mirrored"]
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert before.items() < after.items()
    assert {path.parent.name for path in after.keys() - before.keys()} == {"mirrored", "data"}


@pytest.mark.usefixtures("short_recipe")
def test_progress_rises_to_one_and_names_the_stages(tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    prepare(tmp_path, tasks=2, progress=lambda *news: heard.append(news))
    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (16 / 112, 1.0)
    assert [stage for stage, _ in itertools.groupby(heard, key=lambda news: news[0])] == [
        BASE,
        "upright",
        "rotated",
        "ready",
    ]


@pytest.mark.usefixtures("short_recipe")
def test_interrupted_training_leaves_nothing_behind_and_is_resumed(tmp_path: Path) -> None:
    def interrupt(stage: str, share: float) -> None:
        if stage == "rotated":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "cut", tasks=2, progress=interrupt)
    assert not list((tmp_path / "cut").rglob("rotated/*"))
    prepare(tmp_path / "cut", tasks=2)
    prepare(tmp_path / "whole", tasks=2)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("short_recipe")
def test_two_processes_at_once_agree_to_the_bit_and_stay_silent(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from mergecore import digits
from mergecore.digits import Training
digits.PRE_TRAINING, digits.FINE_TUNING = {SHORT["PRE_TRAINING"]!r}, {SHORT["FINE_TUNING"]!r}
digits.prepare(Path({str(tmp_path / "shared")!r}), tasks=2)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert outputs == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    prepare(tmp_path / "alone", tasks=2)
    assert tree(tmp_path / "shared") == tree(tmp_path / "alone")


@pytest.mark.usefixtures("short_recipe")
def test_key_covers_seed_recipe_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {digits._study_folder(tmp_path, seed) for seed in (0, 1)}
    for name, value in (
        ("RECIPE_VERSION", -1),
        ("FINE_TUNING", SHORT["PRE_TRAINING"]),
        ("NETWORK", digits.NETWORK | {"hidden_size": 32}),
        ("version", lambda library: "0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(digits, name, value)
            folders.add(digits._study_folder(tmp_path, 0))
    assert len(folders) == 6


# what a config names


@pytest.mark.usefixtures("short_recipe")
def test_sources_of_a_config_are_made_on_first_use(tmp_path: Path) -> None:
    data = data_file("upright@1", tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"upright.npz"}
    np.testing.assert_array_equal(np.load(data)["x_test"], digits_arrays("upright", seed=1)["x_test"])
    base = model_folder("base@1", tmp_path)
    assert not (base.parent / "models").exists()
    study = prepare(tmp_path, tasks=["upright"], seed=1)
    assert (study.base, study.data["upright"], study.models["upright"]) == (
        base,
        data,
        model_folder("upright@1", tmp_path),
    )
    assert model_folder("base", tmp_path) != base


def test_study_config_names_validation_for_the_search_and_test_for_the_result() -> None:
    config = study_config(tasks=4, seed=2)
    assert [model.source for model in config.models] == [f"digits:{name}@2" for name in list(TASKS)[:4]]
    assert config.base == "digits:base@2"
    assert config.search.seed == 2
    for task, name in zip(config.tasks, TASKS, strict=False):
        assert task.dataset is not None
        assert (task.name, task.dataset.path) == (name, f"digits:{name}@2")
        assert (task.dataset.split, task.dataset.test_split) == ("validation", "test")
    assert study_config(tasks=2).base == "digits:base"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda home: prepare(home, tasks=9), "There are 8 digit tasks"),
        (lambda home: prepare(home, tasks=0), "There are 8 digit tasks"),
        (lambda home: prepare(home, tasks=["uprigth"]), "Did you mean 'upright'"),
        (lambda home: prepare(home, tasks=["upright", "upright"]), "named twice"),
        (lambda home: prepare(home, tasks=1, seed=-1), "The seed -1"),
        (lambda home: digits_arrays("rotate", seed=0), "Did you mean 'rotated'"),
        (lambda home: model_folder("bse", home), "Did you mean 'base'"),
        (lambda home: model_folder("upright@one", home), "not a whole number"),
        (lambda home: data_file("base", home), "no 'digits:base'"),
        (lambda home: data_file("../upright", home), "no 'digits:../upright'"),
        (lambda home: study_config(tasks=1), "at least two"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(call: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        call(tmp_path)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())
