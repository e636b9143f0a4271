"""Pictures of fronts: every number of tasks, hostile names, no global state."""

from __future__ import annotations

import subprocess
import sys
import warnings
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mergecore.errors import InputError
from mergecore.pictures.drawing import near, scaling, short_line
from mergecore.pictures.fronts import comparison_figure, front_figure, methods_figure
from mergecore.pictures.method_panels import _overlaps, _spread
from mergecore.run_record import RunRecord, TaskInfo
from tests.mergecore.records import HOSTILE_NAMES, make_comparison, make_record


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


def has_colour(image: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(image.astype(int) - wanted).sum(axis=2) < 12).any())


@pytest.mark.parametrize("T", [1, 2, 3, 4, 8])
def test_draws_any_number_of_tasks(T: int) -> None:
    names = [f"task {t}" for t in range(T)]
    image = pixels(front_figure(make_record(tasks=names, models=names[:2] if T > 1 else ["m"])))
    assert image.shape[1] > 900
    assert has_colour(image, "#0b7a70")  # verified
    assert has_colour(image, "#5b4bb5") == (T <= 3)  # single models


def test_unverified_and_empty_fronts_draw_what_there_is() -> None:
    record = make_record(verified=0)
    assert not has_colour(pixels(front_figure(record)), "#0b7a70")
    record.front = record.front.iloc[:0]
    assert pixels(front_figure(record)).size


@pytest.mark.parametrize("T", [2, 5])
def test_nan_and_constant_metrics_draw_without_a_warning(T: int) -> None:
    record = make_record(tasks=[f"t{t}" for t in range(T)], verified=12)
    for kind in ("predicted", "real", "test"):
        record.front[f"{kind}.t0"] = 0.5
    record.front.loc[::2, "predicted.t1"] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert has_colour(pixels(front_figure(record)), "#0b7a70")


@pytest.mark.parametrize("count", [2, 6])
def test_names_are_drawn_as_they_are(count: int) -> None:
    names = list(HOSTILE_NAMES[:count])
    record = make_record(tasks=[*names[:-1], r"$\frac{1$"], models=names)
    record.name = "$unbalanced {"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing, a formula that does not parse
        front_figure(record)


def test_labels_are_short_lines_of_glyphs_that_exist() -> None:
    assert short_line("a\n b", 10) == "a b"
    assert short_line("x" * 20, 5) == "xxxx…"
    assert short_line("🦊 é", 10) == "□ é"


def test_parallel_axes_point_up_to_the_better_value() -> None:
    tasks = [TaskInfo(name="a", metric="acc", maximise=True), TaskInfo(name="b", metric="loss", maximise=False)]
    rows = np.array([[0.2, 3.0], [0.4, 1.0], [0.3, np.nan]])
    scale, worst, best = scaling(rows, tasks)
    assert (worst.tolist(), best.tolist()) == ([0.2, 3.0], [0.4, 1.0])
    assert np.allclose(scale(rows), [[0, 0], [1, 1], [0.5, np.nan]], equal_nan=True)
    constant, *_ = scaling(np.full((2, 2), 7.0), tasks)
    assert constant(np.full((1, 2), 7.0)).tolist() == [[0.5, 0.5]]


def test_the_same_record_gives_the_same_bytes() -> None:
    assert front_figure(make_record()) == front_figure(make_record())
    assert front_figure(make_record()) != front_figure(make_record(seed=1))


def test_pyplot_is_never_loaded() -> None:
    code = "import sys, mergecore.pictures.fronts; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_comparison_has_a_colour_for_each_run() -> None:
    first, second = make_record(), make_record(seed=1)
    image = pixels(comparison_figure([first, second]))
    assert has_colour(image, "#0b7a70")
    assert has_colour(image, "#c2410c")


def test_comparison_uses_what_all_runs_measured() -> None:
    def without_test(record: RunRecord) -> RunRecord:
        record.front[["test.A", "test.B"]] = np.nan
        return record

    held_out_missing = comparison_figure([make_record(), without_test(make_record(seed=1))])
    assert held_out_missing == comparison_figure([without_test(make_record()), without_test(make_record(seed=1))])
    with pytest.raises(InputError, match="measured"):
        comparison_figure([make_record(verified=0), make_record()])


@pytest.mark.parametrize("tasks", ["A", "AB", "ABC", "ABCDEFGH"])
@pytest.mark.parametrize("held_out", [True, False])
def test_methods_are_drawn_for_any_number_of_tasks(tasks: str, held_out: bool) -> None:
    comparison = make_comparison(tasks=tasks, models="klm", counts=[3], held_out=held_out)
    image = pixels(methods_figure(comparison, 3))
    assert image.shape[1] > 900
    for colour in ("#0b7a70", "#c2410c", "#5b4bb5"):  # map, map + ties, the single models
        assert has_colour(image, colour)


@pytest.mark.parametrize("tasks", ["A", "AB", "ABC"])
def test_methods_miss_points_and_levels_without_a_warning(tasks: str) -> None:
    comparison = make_comparison(tasks=tasks, models="kl", counts=[2])
    comparison.own = {}
    for result in comparison.results[:2]:
        assert result.chosen is not None
        result.chosen.test_RT[:, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert has_colour(pixels(methods_figure(comparison, 2)), "#5b4bb5")


def test_a_number_of_models_that_no_method_could_merge_is_an_empty_picture() -> None:
    assert pixels(methods_figure(make_comparison(searches=(), merges=(), bounds=()), 2)).size


@pytest.mark.parametrize("count", [2, 3])
def test_names_of_methods_are_drawn_as_they_are(count: int) -> None:
    comparison = make_comparison(
        tasks=HOSTILE_NAMES[:3], searches=HOSTILE_NAMES[:3], merges=[*HOSTILE_NAMES[3:], r"$\frac{1$"]
    )
    comparison.name = "$unbalanced {"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        methods_figure(comparison, count)


def test_what_lies_far_off_does_not_squeeze_the_rest() -> None:
    values = np.array([0.7, 0.72, 0.75, 0.74, 0.1, np.nan])
    assert near(values).tolist() == [0.7, 0.72, 0.75, 0.74]
    assert near(np.array([np.nan])).size == 0
    first, second = (make_comparison(tasks="ABC", merges=["soup", "ties", "dare", "base"], seed=1) for _ in range(2))
    chosen = next(result.chosen for result in second.results if result.method == "base" and result.models == 2)
    assert chosen is not None
    chosen.test_RT[:] = -50.0
    image, other = (pixels(methods_figure(comparison, 2)).astype(int) for comparison in (first, second))
    assert image.shape == other.shape
    found = [np.argwhere(np.abs(picture - [11, 122, 112]).sum(axis=2) < 12) for picture in (image, other)]
    assert np.ptp(found[1][:, 1]) > 0.5 * np.ptp(found[0][:, 1])  # the front of map is as wide as before, about


def test_names_at_the_ends_of_lines_are_moved_apart() -> None:
    values = np.array([0.5, 0.9, 0.52, 0.51, 0.99])
    moved = _spread(values, gap=0.1, low=0.0, high=1.0)
    assert np.argsort(moved).tolist() == np.argsort(values).tolist()
    assert np.diff(np.sort(moved)).min() >= 0.1 - 1e-12
    assert moved.min() >= 0
    assert moved.max() <= 1
    crowded = _spread(np.full(30, 0.5), gap=0.1, low=0.0, high=1.0)
    assert np.allclose(np.sort(crowded), np.linspace(0, 1, 30))
    assert _spread(np.empty(0), gap=0.1, low=0.0, high=1.0).size == 0


def test_names_beside_points_share_area_as_rectangles_do() -> None:
    boxes = np.array([[0.0, 0, 2, 1], [5, 5, 6, 6]])
    assert _overlaps(boxes, np.array([[1.0, 0.5, 3, 3], [0, 0, 1, 1]])).tolist() == [1.5, 0]
    assert _overlaps(boxes, np.empty((0, 4))).tolist() == [0, 0]


def test_the_same_comparison_gives_the_same_bytes() -> None:
    assert methods_figure(make_comparison(), 2) == methods_figure(make_comparison(), 2)
    assert methods_figure(make_comparison(), 2) != methods_figure(make_comparison(), 3)
