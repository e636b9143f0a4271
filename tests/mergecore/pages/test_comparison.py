"""The page of a comparison: self-contained, honest about who is best, hostile names stay data."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from mergecore.comparison.methods import Comparison
from mergecore.comparison.tables import accuracy_table, measures_table, preference_table
from mergecore.pages.comparison import headline, page_data, render_comparison
from mergecore.run_record import TaskInfo
from tests.browser import drawn
from tests.mergecore.pages.test_report import Page
from tests.mergecore.records import HOSTILE_NAMES, make_comparison

SCRIPTS = ("report_choice.js", "page_charts.js", "page_elements.js", "compare_charts.js", "compare_page.js")


def hostile() -> Comparison:
    comparison = make_comparison(
        tasks=HOSTILE_NAMES[:3], models=HOSTILE_NAMES[:3], searches=HOSTILE_NAMES[:2], merges=HOSTILE_NAMES[2:]
    )
    comparison.name = "{{js}}</title>" + HOSTILE_NAMES[1]
    comparison.tasks[0] = TaskInfo(name="average", metric=HOSTILE_NAMES[0], maximise=True)
    return comparison


def with_nan() -> Comparison:
    comparison = make_comparison()
    for result in comparison.results:
        if result.chosen is not None:
            result.chosen.test_RT[0, 0] = np.nan
    return comparison


def mixed() -> Comparison:
    comparison = make_comparison()
    comparison.tasks[1] = TaskInfo(name="B", metric="perplexity", maximise=False)
    return comparison


COMPARISONS = {
    "two and three models": make_comparison,
    "eight tasks": lambda: make_comparison(tasks="ABCDEFGH", models="klmnopqr", counts=range(2, 9)),
    "one task": lambda: make_comparison(tasks="A", models="mno", counts=[3]),
    "twenty-four merges": lambda: make_comparison(merges=[f"merge {i}" for i in range(24)]),
    "no search": lambda: make_comparison(searches=()),
    "no merge": lambda: make_comparison(searches=(), merges=()),
    "nothing": lambda: make_comparison(searches=(), merges=(), bounds=()),
    "no preference drawn": lambda: make_comparison(preferences=0),
    "no held-out data": lambda: make_comparison(held_out=False),
    "less is better": lambda: make_comparison(metric="loss", maximise=False),
    "mixed metrics": mixed,
    "NaN": with_nan,
    "hostile names": hostile,
}


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom", "ignore:invalid value")
@pytest.mark.parametrize("kind", COMPARISONS)
def test_page_is_whole_and_loads_nothing(kind: str) -> None:
    comparison = COMPARISONS[kind]()
    page = Page(render_comparison(comparison))
    assert page.open == []
    assert page.title == comparison.name
    assert page.data == page_data(comparison)
    for tag, attributes in page.elements:
        assert "src" not in attributes
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        assert attributes.get("href", "data:,") == "data:,"
        assert not [name for name in attributes if name.startswith("on")]
    assert [attributes.get("type") for attributes, _ in page.scripts] == ["application/json", None, None]


def test_names_are_data_and_stay_as_they_are() -> None:
    text = render_comparison(hostile())
    data = Page(text).data
    assert [method["name"] for method in data["methods"]] == [*HOSTILE_NAMES, "single", "slerp"]
    assert data["models"] == list(HOSTILE_NAMES[:3])
    assert not set("<>&\u2028\u2029") & set(text.split('id="run-data">')[1].split("</script>")[0])
    assert "<script>alert(1)" not in text


def test_own_scripts_never_write_markup_nor_fetch() -> None:
    for name in SCRIPTS:
        source = files("mergecore.pages").joinpath(name).read_text("utf-8").replace('"http://www.w3.org/2000/svg"', "")
        forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(|XMLHttp|https?://|import\("
        assert re.findall(forbidden, source) == []


def test_the_page_shows_what_the_tables_say() -> None:
    comparison = make_comparison()
    data = page_data(comparison)
    names = [method["name"] for method in data["methods"]]
    assert names == ["map", "map + ties", "soup", "ties", "single", "slerp"]
    assert [method["search"] for method in data["methods"]] == [True, True, False, False, False, False]
    assert [method["bound"] for method in data["methods"]] == [False] * 4 + [True, False]
    for heat, count in zip(data["heats"], (2, 3), strict=True):
        accuracy, measures = accuracy_table(comparison, count), measures_table(comparison, count)
        shown = [[names[r["method"]], *r["equal"], r["average"]] for r in heat["results"]]
        assert shown == accuracy.to_numpy().tolist()
        assert heat["measures"]["columns"] == list(measures.columns[1:])
        assert [names[row[0]] for row in heat["measures"]["rows"]] == list(measures["method"])
        assert [row[2] for row in heat["measures"]["rows"]] == measures["hypervolume"].tolist()
        assert heat["own"] == [0.85] * count
    sums = preference_table(comparison)
    assert data["sums"]["mean"][:5] == sums[["2 mean", "3 mean"]].to_numpy()[:5].tolist()
    assert data["sums"]["std"][5] == [None, None]
    assert data["preferences"] == 4
    assert data["leftOut"] == [{"method": "slerp", "models": [2, 3], "reason": "SLERP merges two models."}]


def test_fronts_are_those_that_were_predicted_and_measured() -> None:
    comparison = make_comparison(front=9)
    first, *_, last = page_data(comparison)["heats"][0]["results"]
    assert len(first["predicted"]) == 9
    assert len(first["points"]) == 3 + 5  # every third of the front, and the choices
    assert last["predicted"] == []


def equal_sums(comparison: Comparison, count: int, **values: float) -> None:
    """Every metric of a method, whatever the preference."""
    for result in comparison.results:
        if result.models == count and result.chosen is not None and result.method in values:
            result.chosen.test_RT[:] = values[result.method]


def test_headline_is_of_the_largest_number_of_models_and_leaves_bounds_aside() -> None:
    comparison = make_comparison(searches=["map"], missing=())
    equal_sums(comparison, 2, map=0.5, soup=0.6, ties=0.4, single=0.9)
    equal_sums(comparison, 3, map=0.7, soup=0.6, ties=0.5, single=0.9)
    assert headline(comparison) == [
        "With 3 models, map has the best average accuracy at equal preference (0.7000) and the best weighted sum over "
        "4 preferences (0.7000 on average).",
        "map's weighted sum is the best for 1 of 2 numbers of models.",
    ]


def test_headline_says_where_map_is_not_the_best() -> None:
    comparison = make_comparison(searches=["map"])
    equal_sums(comparison, 2, map=0.5, soup=0.6, ties=0.4)
    equal_sums(comparison, 3, map=0.5, soup=0.6, ties=0.7)
    comparison.results[7].chosen.test_RT[1:] = 0.8  # type: ignore[union-attr]
    assert comparison.results[7].method == "ties"
    comparison.results[6].chosen.test_RT[1:] = 0.9  # type: ignore[union-attr]
    assert headline(comparison) == [
        "With 3 models, ties has the best average accuracy at equal preference (0.7000), and soup the best weighted "
        "sum over 4 preferences (0.9000 on average).",
        "Of 3 merges, map comes 3rd at equal preference (0.2000 behind) and 3rd over preferences (0.4000 behind).",
        "map's weighted sum is the best for none of 2 numbers of models.",
    ]


def test_headline_of_shares_ties_and_nothing() -> None:
    comparison = make_comparison(searches=(), counts=[2], metric="loss", maximise=False, preferences=0)
    equal_sums(comparison, 2, soup=0.5, ties=0.5)
    assert headline(comparison) == [
        "With 2 models, soup and ties has the best share of the single models' metrics at equal preference (1.7000)."
    ]
    assert headline(make_comparison(searches=(), merges=())) == ["No merge gave a result."]


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's functions here")
def test_sorting_ranges_and_labels(tmp_path: Path) -> None:
    sources = [
        files("mergecore.pages").joinpath(name).read_text("utf-8") for name in ("report_choice.js", "compare_charts.js")
    ]
    page = files("mergecore.pages").joinpath("compare_page.js").read_text("utf-8")
    sources.append(page[page.index("function inOrder") : page.index("const nameCell")])
    sources.append("""
        const sorted = (values, side) => [...values].sort((a, b) => inOrder(a, b, side));
        const choices = [0.7, 0.72, 0.75, 0.74, 0.1].map((value) => ({ equal: [value] }));
        const labels = [...Array(12).keys()].map((k) => ({ at: [200 + k, 150], width: 60 }));
        const shifts = placeLabels(labels, [[206, 150]], { width: 400, height: 300 }, 15);
        const middles = shifts.map((shift, k) => shift.map((part, axis) => labels[k].at[axis] + part));
        console.log(JSON.stringify({
          more: sorted([0.1, null, 0.3, 0.2], 1),
          less: sorted([0.1, null, 0.3, 0.2], -1),
          names: sorted(["b", "a", "c"], -1),
          near: [nearRange([0.7, 0.72, 0.75, 0.74, 0.1, null]), nearRange([null]), nearRange([1])],
          levels: [true, false].map((zoom) => taskRange({ own: [0.95] }, choices, 0, { zoom, fronts: true })),
          spread: spread([0.5, 0.9, 0.52, 0.51, 0.99], 0.1, [0, 1]),
          crowded: spread(Array(30).fill(0.5), 0.1, [0, 1]),
          middles,
        }));
    """)
    (tmp_path / "program.js").write_text("\n".join(sources), "utf-8")
    answer = subprocess.run(["node", str(tmp_path / "program.js")], capture_output=True, text=True, check=True)
    found = json.loads(answer.stdout)
    assert (found["more"], found["less"]) == ([0.3, 0.2, 0.1, None], [0.1, 0.2, 0.3, None])
    assert found["names"] == ["a", "b", "c"]
    assert found["near"] == [[0.7, 0.75], None, [1, 1]]
    assert found["levels"] == [[0.7, 0.95], [0.1, 0.95]]  # the single models' level is in view with any choices
    assert np.diff(np.sort(found["spread"])).min() >= 0.1 - 1e-12
    assert np.argsort(found["spread"]).tolist() == [0, 3, 2, 1, 4]
    assert np.allclose(np.sort(found["crowded"]), np.linspace(0, 1, 30))
    middles, half = np.array(found["middles"]), np.array([30, 7.5])
    assert (middles >= half).all()
    assert (middles <= [400, 300] - half).all()
    for i, middle in enumerate(middles):
        assert (np.abs(middles[:i] - middle) >= 2 * half).any(axis=1).all()  # no two names share area


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom", "ignore:invalid value")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="a browser draws the page here")
@pytest.mark.parametrize(
    "kind", ["two and three models", "one task", "nothing", "mixed metrics", "NaN", "hostile names"]
)
def test_a_browser_draws_every_part(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    comparison = COMPARISONS[kind]()
    file.write_text(render_comparison(comparison), "utf-8")
    body = re.sub(r"<script.*?</script>", "", drawn(file), flags=re.DOTALL)
    assert 'data-ready="yes"' in body[:200]
    assert "could not be shown" not in body
    assert 'class="main-svg"' in body
    methods = len(page_data(comparison)["heats"][-1]["results"])
    accuracy = body.split('id="accuracy-table"')[1].split("</table>")[0]
    assert accuracy.count('<th scope="row"') == methods
    assert ("<strong" in accuracy) == (kind != "nothing")
