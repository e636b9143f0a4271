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
from mergecore.figures import _label, _scaling, comparison_figure, front_figure
from mergecore.run_folder import RunRecord, TaskInfo
from tests.mergecore.records import HOSTILE_NAMES, make_record


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
    assert _label("a\n b", 10) == "a b"
    assert _label("x" * 20, 5) == "xxxx…"
    assert _label("🦊 é", 10) == "□ é"


def test_parallel_axes_point_up_to_the_better_value() -> None:
    tasks = [TaskInfo(name="a", metric="acc", maximise=True), TaskInfo(name="b", metric="loss", maximise=False)]
    rows = np.array([[0.2, 3.0], [0.4, 1.0], [0.3, np.nan]])
    scale, worst, best = _scaling(rows, tasks)
    assert (worst.tolist(), best.tolist()) == ([0.2, 3.0], [0.4, 1.0])
    assert np.allclose(scale(rows), [[0, 0], [1, 1], [0.5, np.nan]], equal_nan=True)
    constant, *_ = _scaling(np.full((2, 2), 7.0), tasks)
    assert constant(np.full((1, 2), 7.0)).tolist() == [[0.5, 0.5]]


def test_the_same_record_gives_the_same_bytes() -> None:
    assert front_figure(make_record()) == front_figure(make_record())
    assert front_figure(make_record()) != front_figure(make_record(seed=1))


def test_pyplot_is_never_loaded() -> None:
    code = "import sys, mergecore.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
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
