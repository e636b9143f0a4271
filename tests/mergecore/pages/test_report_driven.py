"""The report as a person uses it, in Chromium: sliders, keys, the copied command; narrow, dark, large, hostile."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mergecore.pages.report import render_report
from mergecore.run_record import RunRecord
from tests.browser import Page, browser
from tests.mergecore.pages.test_report import pick_by
from tests.mergecore.records import HOSTILE_NAMES, make_record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="a browser shows the page here"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


def show(page: Page, record: RunRecord, folder: Path, **how: object) -> None:
    page.requests.clear()
    page.complaints.clear()
    file = folder / "report.html"
    file.write_text(render_report(record, folder="runs/it's mine"), "utf-8")
    page.open(file, **how)  # type: ignore[arg-type]


def chosen(page: Page) -> int:
    """The index of the point that the page shows."""
    title = page.evaluate("document.getElementById('choice-title').textContent")
    return int(title.split("point ")[1].split(" of")[0]) - 1


def set_weights(page: Page, weights: list[int]) -> None:
    for task, weight in enumerate(weights):
        page.evaluate(
            f"(() => {{ const s = document.getElementById('weight-{task}'); s.value = {weight};"
            "s.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )


def alert_free(page: Page) -> None:
    assert page.complaints == []
    assert page.requests == []


@pytest.mark.parametrize(
    "record",
    [
        make_record(points=60, verified=9),
        make_record(points=60, verified=9, metric="loss", maximise=False),
        make_record(tasks="ABC", models="lmn", points=200, verified=12),
        make_record(tasks=HOSTILE_NAMES, models=HOSTILE_NAMES, points=60, verified=9),
        make_record(points=1, verified=1),
    ],
    ids=["two", "losses", "three", "hostile", "one point"],
)
def test_every_corner_is_its_tasks_best_and_the_command_finds_it(record: RunRecord, tmp_path: Path, page: Page) -> None:
    show(page, record, tmp_path)
    predicted = record.front_metrics("predicted")
    sign = 1 if record.tasks[0].maximise else -1
    for corner in range(len(record.tasks)):
        set_weights(page, [100 if task == corner else 0 for task in range(len(record.tasks))])
        index = chosen(page)
        assert sign * predicted[index, corner] == (sign * predicted[:, corner]).max()
        command = page.evaluate("document.getElementById('command').textContent")
        assert pick_by(record, command).index == index
        page.evaluate("document.getElementById('copy').click()")
        deadline = time.monotonic() + 10
        while page.evaluate("document.getElementById('copied').textContent") not in ("Copied", "Selected"):
            assert time.monotonic() < deadline
    alert_free(page)


def test_keys_alone_move_the_choice(tmp_path: Path, page: Page) -> None:
    record = make_record(points=60, verified=9)
    show(page, record, tmp_path)
    page.evaluate("document.getElementById('weight-0').focus()")
    page.press("End", 35)
    page.evaluate("document.getElementById('weight-1').focus()")
    page.press("Home", 36)
    assert chosen(page) == int(np.argmax(record.front_metrics("predicted")[:, 0]))
    assert page.evaluate("document.getElementById('share-0').textContent") == "1.000"
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(60):
        page.press("Tab", 9)
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"weight-0", "weight-1", "equal", "command", "copy"} <= reached
    alert_free(page)


@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_any_width_and_both_schemes(width: int, dark: bool, tmp_path: Path, page: Page) -> None:
    show(page, make_record(tasks="ABC", models="lmn", points=60, verified=9), tmp_path, width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways
    ground, ink = (
        page.evaluate(f"getComputedStyle(document.body).{what}.match(/[0-9.]+/g).slice(0, 3).map(Number)")
        for what in ("backgroundColor", "color")
    )
    assert (sum(ground) < sum(ink)) == dark
    alert_free(page)


def test_a_thousand_points_move_at_once(tmp_path: Path, page: Page) -> None:
    show(page, make_record(points=1000, verified=50), tmp_path)
    took = page.evaluate(
        """(async () => {
          const times = [];
          for (let weight = 0; weight <= 100; weight += 10) {
            const slider = document.getElementById('weight-0');
            const begun = performance.now();
            slider.value = weight;
            slider.dispatchEvent(new Event('input', {bubbles: true}));
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            times.push(performance.now() - begun);
          }
          return times.sort((a, b) => a - b)[times.length >> 1];
        })()"""
    )
    assert took < 1000  # many times what it takes, so that a busy machine passes
    alert_free(page)


def test_equal_values_everywhere(tmp_path: Path, page: Page) -> None:
    record = make_record(points=12, verified=4)
    for column in [c for c in record.front.columns if c.startswith(("predicted.", "real.", "test."))]:
        record.front.loc[record.front[column].notna(), column] = 0.5
    record.evaluations[["A", "B"]] = 0.5
    show(page, record, tmp_path)
    assert chosen(page) in range(12)
    alert_free(page)


def test_no_button_sends_the_chart_anywhere(tmp_path: Path, page: Page) -> None:
    show(page, make_record(points=20, verified=4), tmp_path)
    titles = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title)")
    assert "Download plot as a PNG" in titles
    assert not [title for title in titles if "hare" in title or "loud" in title]


def test_names_run_nothing(tmp_path: Path, page: Page) -> None:
    record = make_record(tasks=HOSTILE_NAMES, models=HOSTILE_NAMES, points=20)
    record.name = HOSTILE_NAMES[1]
    record.summary["diagnosis"]["sentence"] = HOSTILE_NAMES[0]
    page.call("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.injected = true; };")
    show(page, record, tmp_path)
    assert page.evaluate("window.injected") is None
    assert page.evaluate("document.getElementById('name').textContent") == HOSTILE_NAMES[1]
    assert page.evaluate("document.querySelectorAll('img[src=\"x\"]').length") == 0
    labels = page.evaluate("[...document.querySelectorAll('#sliders label')].map((label) => label.textContent)")
    assert labels == list(HOSTILE_NAMES)
    alert_free(page)
