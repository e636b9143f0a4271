"""Pictures of routers: any number of tasks, models and modules, hostile names, the same bytes."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mergecore.pareto_moe.figures import dissimilarity_figure, routing_figure, running_mean, training_figure
from mergecore.run_record import RunRecord
from tests.mergecore.records import HOSTILE_NAMES, routed_record

FIGURES = [routing_figure, dissimilarity_figure, training_figure]


def found_of(record: RunRecord) -> dict:
    return record.summary["pareto_moe"]


def count_colour(png: bytes, colour: tuple[int, int, int]) -> int:
    image = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    return int((np.abs(image - colour).sum(axis=2) < 6).sum())


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize(("tasks", "modules"), [("A", 1), ("AB", 12), ("ABC", 65), ("ABCDEFGH", 12)])
def test_draws_any_size(draw, tasks: str, modules: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = draw(found_of(routed_record(tasks, modules=modules)), "study")
    assert png == draw(found_of(routed_record(tasks, modules=modules)), "study")
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", FIGURES)
def test_names_are_drawn_as_they_are(draw) -> None:
    names = [*HOSTILE_NAMES[1:], r"$\frac{1$"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(found_of(routed_record(names, names)), "$unbalanced {")


def test_routing_weights_have_one_scale_around_lambda() -> None:
    found = found_of(routed_record(modules=2))
    found["routing"] = {"equal": [[0.3, 0.3], [0.3, 0.3]], "A": [[0.9, 0.3], [0.3, 0.3]], "B": [[0.3, 0.3], [0.3, 0.0]]}
    png = routing_figure(found, "study")
    white, most, least = (count_colour(png, colour) for colour in ((244, 244, 242), (29, 111, 165), (194, 87, 12)))
    assert white > 9 * most > 0  # ten cells at lambda, one at the top; the lowest is half as far from lambda
    assert 0 < least < most / 5  # only on the colour bar
    found["routing"] = {name: [[0.3, 0.3]] for name in found["routing"]}
    assert count_colour(routing_figure(found, "untrained"), (244, 244, 242)) > 0


def test_a_kind_without_modules_and_a_distance_of_nothing_are_left_out() -> None:
    found = found_of(routed_record())
    whole = dissimilarity_figure(found, "study")
    del found["dissimilarity"]["kinds"]["attention"]
    assert count_colour(whole, (194, 65, 12)) > 0
    assert count_colour(dissimilarity_figure(found, "study"), (194, 65, 12)) == 0
    found["dissimilarity"]["kinds"]["mlp"]["cosine"] = [None] * 4
    assert dissimilarity_figure(found, "study").startswith(b"\x89PNG")


def test_running_mean_is_of_what_lies_around() -> None:
    values = np.random.default_rng(0).random(47)
    slow = [values[max(0, i - 2) : i + 3].mean() for i in range(47)]
    assert np.allclose(running_mean(values), slow)
    assert running_mean(np.array([3.0])).tolist() == [3.0]
