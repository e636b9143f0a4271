"""The page: self-contained, hostile names stay data, the choice is the one `pick` makes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from mergecore.pages.report import correlation, page_data, references, render_report
from mergecore.pick import NO_ROW, Pick, pick_point
from mergecore.run_record import RunRecord, TaskInfo
from tests.browser import drawn
from tests.mergecore.records import HOSTILE_NAMES, make_record, nested_record, routed_record

VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """The page's elements: scripts by type, attributes, text by id, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.title = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self.open and self.open[-1] == "title":
            self.title += data

    @property
    def data(self) -> dict:
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "run-data"))


def hostile_record() -> RunRecord:
    record = make_record(tasks=HOSTILE_NAMES, models=HOSTILE_NAMES)
    record.name = "{{js}}</title>" + HOSTILE_NAMES[1]
    record.summary["diagnosis"]["sentence"] = HOSTILE_NAMES[0] + "<!--"
    record.config = {"name": HOSTILE_NAMES[1]}
    return record


def without_front(record: RunRecord) -> RunRecord:
    record.front, record.evaluations = record.front.iloc[:0], record.evaluations.iloc[:0]
    record.surrogates, record.summary, record.config = {}, {}, {}
    return record


def with_nan(record: RunRecord) -> RunRecord:
    record.front.loc[0, "predicted.A"] = np.nan
    record.evaluations.loc[::3, "B"] = np.nan
    record.surrogates["A"].update(held_out_r2=np.nan, out_of_fold=[np.nan, 0.1])
    record.summary = {"hypervolume": {"real": None, "predicted": np.nan}, "timings": {"front": np.nan}}
    return record


def direct(record: RunRecord) -> RunRecord:
    record.front[["predicted.A", "predicted.B"]] = np.nan
    return record


RECORDS = {
    "two tasks": lambda: make_record(),
    "one task": lambda: make_record(tasks=["A"]),
    "three tasks": lambda: make_record(tasks="ABC", models="lmn"),
    "eight tasks": lambda: make_record(tasks="ABCDEFGH", models="klmnopqr"),
    "one point": lambda: make_record(points=1),
    "1000 points": lambda: make_record(points=1000),
    "nothing verified": lambda: make_record(verified=0),
    "direct search": lambda: direct(make_record(points=4, verified=4, surrogates=False)),
    "less is better": lambda: make_record(metric="loss", maximise=False),
    "NaN": lambda: with_nan(make_record()),
    "no front": lambda: without_front(make_record()),
    "hostile names": hostile_record,
    "nested": lambda: nested_record("klmno"),
    "hostile tree": lambda: nested_record(HOSTILE_NAMES),
    "nested losses": lambda: nested_record("kl", maximise=False),
    "routers": lambda: routed_record("ABC", "klm", modules=12),
    "routers, losses": lambda: routed_record(maximise=False, analysed=False),
    "hostile routers": lambda: routed_record(HOSTILE_NAMES, HOSTILE_NAMES),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_page_is_whole_and_loads_nothing(kind: str) -> None:
    record = RECORDS[kind]()
    page = Page(render_report(record))
    assert page.open == []
    assert page.title == record.name
    assert page.data == page_data(record)
    for tag, attributes in page.elements:
        assert "src" not in attributes
        assert tag not in {"iframe", "object", "embed", "base", "form"} or attributes.get("id") == "preferences"
        assert attributes.get("href", "data:,") == "data:,"
        assert not [name for name in attributes if name.startswith("on")]
    assert [attributes.get("type") for attributes, _ in page.scripts] == ["application/json", None, None]


def test_policy_allows_the_two_scripts_by_hash_and_no_address() -> None:
    page = Page(render_report(make_record()))
    policy = next(
        a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    directives = dict(directive.split(" ", 1) for directive in (policy or "").split("; "))
    assert directives["default-src"] == "'none'"
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for a, text in page.scripts if not a]
    assert directives["script-src"] == " ".join(f"'sha256-{digest}'" for digest in hashes)
    assert not re.search(r"https?:|\*", policy or "")


def test_own_scripts_never_write_markup_nor_fetch() -> None:
    for name in ("report_choice.js", "report_charts.js", "report_page.js", "report_routers.js"):
        source = files("mergecore.pages").joinpath(name).read_text("utf-8")
        forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(|XMLHttp|https?://|import\("
        assert re.findall(forbidden, source) == []


def test_names_are_data_and_stay_as_they_are() -> None:
    text = render_report(hostile_record())
    page = Page(text)
    assert [task["name"] for task in page.data["tasks"]] == list(HOSTILE_NAMES)
    assert page.data["models"] == list(HOSTILE_NAMES)
    embedded = text.split('id="run-data">')[1].split("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert "<script>alert(1)" not in text


def test_numbers_reach_the_page_to_the_last_bit() -> None:
    record = make_record(verified=3)
    data = Page(render_report(record)).data
    assert data["front"]["predicted"] == record.front_metrics("predicted").tolist()
    assert data["front"]["real"][:3] == record.front_metrics("real")[:3].tolist()
    assert data["front"]["real"][3] == [None, None]
    assert data["verified"] == [0, 1, 2]


def test_data_of_a_full_run() -> None:
    record = make_record()
    record.summary |= {
        "method": "bayesian_map",
        "evaluations": {"coefficient_vectors": 13, "pairs": 26, "known_pairs": 5, "failed": 2},
        "spent": {"ended": "budget.pairs"},
        "reference_point": {"values": {"B": 0.2, "A": 0.1}, "source": "x"},
        "hypervolume_by_round": [0.1, None, 0.2],
    }
    record.config["resolved"] = {"versions": {"torch": "2"}}
    data = page_data(record, folder="runs/my study")
    assert (data["method"], data["sentence"], data["folder"]) == ("bayesian_map", "The tasks compete.", "runs/my study")
    assert data["figures"] == {
        "vectors": 13, "pairs": 26, "known": 5, "failed": 2, "seconds": 4.0, "longestStage": ["evaluate", 2.0],
        "ended": "the search ended by budget.pairs", "hypervolume": 0.25,
        "hypervolumeOf": "of the measured points", "referencePoint": [0.1, 0.2],
    }  # fmt: skip
    assert data["surrogates"][0]["gap"] == pytest.approx(0.01)
    assert data["hypervolumeByRound"] == [0.1, None, 0.2]
    assert data["documents"]["versions"] == "torch: '2'\n"


def test_data_of_a_run_that_says_nothing() -> None:
    record = make_record(verified=0, surrogates=False)
    record.summary, record.config = {}, {}
    data = page_data(record)
    assert data["folder"] == str(Path("runs/study"))
    assert data["sentence"] == "12 merged models on the front of 2 tasks."
    assert data["figures"]["vectors"] == len(record.evaluations)
    assert (data["figures"]["seconds"], data["figures"]["hypervolume"], data["surrogates"]) == (None, None, [])


def test_base_and_single_models_are_found_among_the_evaluations() -> None:
    record = make_record()
    found = references(record)
    assert [(reference["kind"], reference["name"]) for reference in found] == [
        ("base", "base"),
        ("model", "m"),
        ("model", "n"),
    ]
    assert found[1]["metrics"].tolist() == record.evaluated_metrics()[1].tolist()
    record.evaluations.loc[1, ["A", "B"]] = np.nan
    record.evaluations.loc[3, ["c.m", "c.n"]] = [0.0, 0.5]
    assert [reference["name"] for reference in references(record)] == ["base", "n"]


def test_unit_preferences_are_no_single_models() -> None:
    record = routed_record()
    assert references(record) == []
    assert page_data(record)["routers"]["routing"] == record.summary["pareto_moe"]["routing"]
    del record.summary["pareto_moe"]
    assert [reference["name"] for reference in references(record)] == ["A", "B"]
    assert page_data(record)["routers"] is None


def test_correlation_is_of_what_is_better() -> None:
    record = make_record(tasks="ABC")
    record.tasks[1] = TaskInfo(name="B", metric="loss", maximise=False)
    record.evaluations["A"] = np.arange(len(record.evaluations), dtype=float)
    record.evaluations["B"] = record.evaluations["A"] * 2
    record.evaluations["C"] = 1.0
    found = correlation(record)
    assert found[0, 1] == pytest.approx(-1.0)
    assert np.isnan(found[2]).all()
    record.evaluations = record.evaluations.iloc[:2]
    assert np.isnan(correlation(record)).all()


def mixed_directions(record: RunRecord) -> RunRecord:
    record.tasks[1] = TaskInfo(name="B", metric="loss", maximise=False)
    record.front["predicted.B"] *= 40
    return record


node = pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's rule here")


@node
@pytest.mark.parametrize(
    "record",
    [
        make_record(points=60, verified=9),
        make_record(points=60, verified=9, metric="loss", maximise=False),
        make_record(tasks="ABCDE", points=60, verified=9),
        mixed_directions(make_record(points=60, verified=9)),
        with_nan(make_record(points=60, verified=9)),
        direct(make_record(points=30, verified=30)),
        make_record(tasks=HOSTILE_NAMES, points=60, verified=9),
    ],
    ids=["accuracy", "loss", "five", "mixed", "NaN", "direct", "hostile"],
)
def test_the_page_chooses_what_its_command_picks(record: RunRecord, tmp_path: Path) -> None:
    data = page_data(record, folder="runs/it's mine")
    rng = np.random.default_rng(0)
    sliders = [*rng.integers(0, 101, (25, len(record.tasks))).tolist(), [0] * len(record.tasks)]
    program = (
        files("mergecore.pages").joinpath("report_choice.js").read_text("utf-8")
        + """
        const { data, sliders } = JSON.parse(require("fs").readFileSync(0, "utf-8"));
        const points = data.front[data.basis];
        const byWeights = (kind, only) => sliders.map((raw) => {
          const weights = weightsOf(raw);
          const command = pickCommand(data.folder, data.tasks, weights, only);
          return [choose(utilities(data.front[kind], data.tasks), weights), command];
        });
        const byClick = points.map((_, p) => [p, boundsCommand(data.folder, data.tasks, points, p)]);
        console.log(JSON.stringify([...byWeights(data.basis, false), ...byWeights("real", true), ...byClick]));
    """
    )
    answer = run_node(program, tmp_path, {"data": data, "sliders": sliders})
    cases = [(index, command) for index, command in answer if command]
    assert len(cases) > 2 * len(sliders)
    for index, command in cases:
        assert pick_by(record, command).index == index


@node
@pytest.mark.parametrize("tasks", ["AB", "ABC", "ABCDE", HOSTILE_NAMES], ids=["two", "three", "five", "hostile"])
def test_the_page_shows_the_nearest_preference_and_picks_the_exact_one(tasks: list[str], tmp_path: Path) -> None:
    record = routed_record(tasks, tasks)
    rng = np.random.default_rng(0)
    T = len(tasks)
    sliders = [*rng.integers(0, 101, (25, T)).tolist(), [0] * T, [1] * T, *np.eye(T, dtype=int).tolist()]
    program = (
        files("mergecore.pages").joinpath("report_choice.js").read_text("utf-8")
        + """
        const { data, sliders } = JSON.parse(require("fs").readFileSync(0, "utf-8"));
        const preferences = data.front.coefficients;
        const utility = utilities(data.front.real, data.tasks);
        const commandOf = (weights) => pickCommand(data.folder, data.tasks, weights, false);
        const byWeights = sliders.map((raw) => {
          const weights = weightsOf(raw);
          const p = nearestPreference(preferences, utility, weights);
          return [p, isPreference(preferences[p], weights), weights, commandOf(weights)];
        });
        const byClick = preferences.map((r, p) => [p, true, r, commandOf(writtenPreference(r))]);
        console.log(JSON.stringify([...byWeights, ...byClick]));
    """
    )
    data = page_data(record, folder="runs/it's mine")
    cases = run_node(program, tmp_path, {"data": data, "sliders": sliders})
    assert {exact for _, exact, _, _ in cases} == {True, False}
    for index, exact, weights, command in cases:
        found = pick_by(record, command)
        assert found.index == (index if exact else NO_ROW)
        share_T = np.array(weights) / sum(weights)
        assert list(found.coefficients.values()) == pytest.approx(share_T.tolist(), abs=1e-6)
        distance_P = np.linalg.norm(record.front_coefficients() - np.array(weights), axis=1)
        assert distance_P[index] == pytest.approx(distance_P.min())


def run_node(program: str, folder: Path, data: object) -> list:
    """What a script prints as JSON that reads ``data`` from standard input."""
    (folder / "program.js").write_text(program, "utf-8")
    answer = subprocess.run(
        ["node", str(folder / "program.js")], input=json.dumps(data), capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


def pick_by(record: RunRecord, command: str) -> Pick:
    """The point that the command line would choose."""
    program, verb, folder, *words = shlex.split(command)
    assert (program, verb, folder) == ("mergecore", "pick", "runs/it's mine")
    options: dict[str, dict[str, float]] = {"--prefer": {}, "--at-least": {}}
    maximize = None
    verified = "--verified" in words
    words = [word for word in words if word != "--verified"]
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "--maximize":
            maximize = value
        else:
            name, _, number = value.rpartition("=")
            options[option][name] = float(number)
    prefer, at_least = options["--prefer"] or None, options["--at-least"] or None
    return pick_point(record, prefer=prefer, at_least=at_least, maximize=maximize, verified=verified)


@node
def test_numbers_and_names_are_written_for_reading(tmp_path: Path) -> None:
    program = (
        files("mergecore.pages").joinpath("report_choice.js").read_text("utf-8")
        + """
        console.log(JSON.stringify([
          [0.91234, 9.12345, 91.2345, 91234.5, 1234567, -0.5, 0, 0.00001, null].map((value) => format(value)),
          [1.25, 59.7, 61, 7384].map(duration),
          [plotText("<b>&", 9), plotText("abcdef", 4), plotText("🦊🦊🦊", 2)],
          weightsOf([1, 1, 1]), weightsOf([0, 0]), shellQuote("a=0.5"), shellQuote("it's"),
          constrained([[1, 2], [2, 1], [0.9, 3]], [{ maximise: true }, { maximise: true }], [1, 0], 1),
        ]));
    """
    )
    numbers, times, names, equal, none, plain, quoted, at_the_bound = run_node(program, tmp_path, None)
    assert numbers == ["0.9123", "9.123", "91.23", "91235", "1.23e+6", "−0.5000", "0", "1.00e−5", "–"]
    assert times == ["1.3 s", "1 min 0 s", "1 min 1 s", "2 h 3 min"]
    assert names == ["&lt;b&gt;&amp;", "abc…", "🦊…"]
    assert (equal, none) == ([0.333] * 3, [0.5] * 2)
    assert at_the_bound == 0
    assert (plain, quoted) == ("a=0.5", shlex.quote("it's"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="a browser draws the page here")
@pytest.mark.parametrize(
    "kind",
    [
        "two tasks",
        "eight tasks",
        "direct search",
        "NaN",
        "no front",
        "hostile names",
        "nested",
        "hostile tree",
        "routers",
        "routers, losses",
        "hostile routers",
    ],
)
def test_a_browser_draws_every_part(kind: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    record = RECORDS[kind]()
    page.write_text(render_report(record), "utf-8")
    body = drawn(page)
    assert 'data-ready="yes"' in body[:200]
    assert "could not be shown" not in re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)
    charts = body.count('class="main-svg"')
    assert charts == 0 if kind == "no front" else charts > 4
    assert body.count('class="chart js-plotly-plot" role="group" aria-label="Routing weights') == {
        "routers": 4, "routers, losses": 3, "hostile routers": 7,
    }.get(kind, 0)  # a panel a preference  # fmt: skip
    assert body.count('class="chosen"') == {"nested": 4, "hostile tree": 5}.get(kind, 0)  # a panel a merge


@node
@pytest.mark.parametrize("maximise", [True, False])
def test_no_single_model_is_best_before_all_were_measured(tmp_path: Path, maximise: bool) -> None:
    program = (
        files("mergecore.pages").joinpath("report_choice.js").read_text("utf-8")
        + """
        const { data } = JSON.parse(require("fs").readFileSync(0, "utf-8"));
        const singles = data.references.filter((reference) => reference.kind === "model");
        console.log(JSON.stringify(bestSingles(singles, data.models, data.tasks)));
    """
    )
    record = make_record(tasks="ABC", models="lmn", maximise=maximise)
    rows = record.evaluations
    metrics_NT = rows[list("ABC")].to_numpy()[1:4]
    rows.loc[2, "B"] = np.nan  # model m on task B
    best_T = (metrics_NT.max if maximise else metrics_NT.min)(axis=0).tolist()
    assert run_node(program, tmp_path, {"data": page_data(record)}) == [best_T[0], None, best_T[2]]
    record.evaluations = rows.drop(index=3)
    assert run_node(program, tmp_path, {"data": page_data(record)}) == [None] * 3
