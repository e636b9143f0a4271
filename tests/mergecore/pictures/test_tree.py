"""The tree of nested MAP's merges: where nodes are, what panels show, pictures of any size and with any name."""

from __future__ import annotations

import itertools
import json
import warnings
from functools import cache

import numpy as np
import pytest

from mergecore.pages.report import page_data
from mergecore.pictures.tree import Node, merge_tree, tree_data, window
from mergecore.pictures.tree_panels import pair_figure, tree_figure
from tests.mergecore.pictures.test_pictures import has_colour, pixels
from tests.mergecore.records import HOSTILE_NAMES, make_record, nested_record

FRONT, CHOSEN, SAMPLE = "#0b7a70", "#c2410c", "#b9c1cb"


@cache
def tree_of(count: int, order: str = "given") -> list[Node]:
    return merge_tree(nested_record("abcdefghi"[:count], order=order).summary)


def leaves_below(nodes: list[Node], node: Node) -> list[Node]:
    return [node] if node.merge is None else [leaf for side in node.sides for leaf in leaves_below(nodes, nodes[side])]


def test_the_tree_of_five() -> None:
    nodes = tree_of(5)
    assert [(node.name, node.x, node.level) for node in nodes] == [
        ("c", 0, 0), ("d", 1, 0), ("e", 2, 0), ("a", 3, 0), ("b", 4, 0),
        ("a+b", 3.5, 1), ("c+d", 0.5, 1), ("e+(a+b)", 2.75, 2), ("(c+d)+(e+(a+b))", 1.625, 3),
    ]  # fmt: skip
    assert [node.sides for node in nodes[5:]] == [(3, 4), (0, 1), (2, 5), (6, 7)]


@pytest.mark.parametrize("order", ["given", "closeness", "clustering"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_nothing_crosses(count: int, order: str) -> None:
    nodes = tree_of(count, order)
    assert len(nodes) == 2 * count - 1
    for node in nodes[count:]:
        left, right = (nodes[side] for side in node.sides)
        assert left.x < node.x < right.x
        assert node.level == max(left.level, right.level) + 1
        below = sorted(leaf.x for leaf in leaves_below(nodes, node))
        assert np.diff(below).tolist() == [1.0] * (len(below) - 1)  # a merge stands over neighbours
        # two leaves' room for its panel lie within what it stands over
        assert below[0] - 0.5 <= node.x - 1
        assert node.x + 1 <= below[-1] + 0.5
    for one, two in itertools.combinations(nodes, 2):
        assert one.level != two.level or abs(one.x - two.x) >= 1


def test_coefficients_of_leaves_are_products_along_the_tree() -> None:
    nodes = tree_of(5)

    def below(node: Node, factor: float) -> dict[str, float]:
        if node.merge is None:
            return {node.name: factor}
        parts = zip(node.sides, node.coefficients, strict=True)
        return {name: c for side, share in parts for name, c in below(nodes[side], factor * share).items()}

    assert below(nodes[-1], 1.0) == pytest.approx({leaf.name: leaf.coefficients[0] for leaf in nodes[:5]})


def test_other_searches_have_no_tree() -> None:
    assert merge_tree({"method": "bayesian_map", "rounds": [{"known": 6}]}) == []
    assert page_data(make_record())["tree"] == []


def test_the_page_has_the_tree_as_json() -> None:
    record = nested_record("abc")
    tree = json.loads(json.dumps(page_data(record)["tree"], allow_nan=False))
    assert [node["name"] for node in tree] == ["c", "a", "b", "a+b", "c+(a+b)"]
    last = tree[-1]["merge"]
    assert last["evaluations"] == 8 * 3
    assert last["r2"].keys() == {"task a", "task b", "task c"}
    assert last["front"][last["chosen"]] == record.summary["rounds"][-1]["front"]["groups"][last["chosen"]]


def test_a_window_holds_the_front_and_does_not_blow_up_a_point() -> None:
    merge = {"front": {"groups": [[0.5, 0.9], [0.7, 0.8]]}, "samples": {"groups": [[0.0, 0.0], [None, None]]}}
    np.testing.assert_allclose(window(merge), [[0.47, 0.73], [0.785, 0.915]])
    merge["front"]["groups"] = [[0.5, 0.9]]
    np.testing.assert_allclose(window(merge), [[0.4675, 0.5325], [0.8415, 0.9585]])
    merge["samples"]["groups"] = [[None, None]]
    assert (np.diff(window(merge)) > 0).all()


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_pictures_of_any_size(count: int) -> None:
    nodes = tree_of(count)
    image = pixels(tree_figure(nodes, title="merges"))
    assert image.shape[0] < 1700
    assert image.shape[1] < 2200
    for colour in (FRONT, CHOSEN, SAMPLE):
        assert has_colour(image, colour)
        assert has_colour(pixels(pair_figure(nodes[-1].merge or {})), colour)


def test_names_are_drawn_as_they_are() -> None:
    nodes = merge_tree(nested_record(HOSTILE_NAMES).summary)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert has_colour(pixels(tree_figure(nodes, title=HOSTILE_NAMES[2])), CHOSEN)
        assert has_colour(pixels(pair_figure(nodes[-1].merge or {})), CHOSEN)
    assert {node["name"] for node in tree_data(nodes)[:6]} == set(HOSTILE_NAMES)


def test_same_bytes_for_the_same_tree() -> None:
    nodes = tree_of(3)
    assert tree_figure(nodes, title="x") == tree_figure(nodes, title="x")
