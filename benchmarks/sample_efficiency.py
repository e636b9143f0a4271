"""Hypervolume of everything evaluated so far, against the number of evaluations, for our searches and their rivals.

``python -m benchmarks.sample_efficiency [digits:2 | vision8:3 | text6:2 …]``. All methods measure the same models on
the same validation data through one ledger; seeds are of the searches. The reference is the hypervolume of everything
that all methods evaluated together with one seed. Runs are kept under MERGECORE_HOME; remove their folder to repeat
them.

Shape suffixes: k candidates of one batch, K of all, N coefficients, T objectives.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.measuring import Measurer
from benchmarks.rivals import rivals
from benchmarks.tables import RESULTS, machine, markdown
from mergecore.config_file import parse_config
from mergecore.digits import study_config
from mergecore.files import atomic_write, home_folder
from mergecore.fronts.config import FrontConfig
from mergecore.fronts.indicators import hypervolume, worst_metrics
from mergecore.fronts.spread import spread_points
from mergecore.search import Search
from mergecore.study import Study, new_search, prepare

BUDGETS = {2: 40, 3: 50, 4: 60, 8: 120}
"""Evaluated coefficient vectors by N."""
LONGER = {8: 360}
"""Of rivals without models, by N, where those of ours are to be a third of theirs."""
BATCHES = {2: 3, 3: 3, 4: 3, 8: 6}
"""Candidates a round, of Bayesian MAP and of qLogNEHVI; the paper's is 3."""
SEEDS = {2: 10, 3: 5, 4: 5, 8: 3}
"""By N."""
FEWER_SEEDS = {"text6:2": 5, "vision8:8": 2}
"""Where a candidate takes more than a second, or thousands of them one."""
PICTURES = {2: 600, 3: 200, 4: 600, 8: 200}
"""Of each set of vision8 by N: several thousand candidates are measured."""
TEXTS = 128
SHARES = (0.90, 0.95, 0.98, 0.99)
DEFAULT = (
    *("digits:2", "digits:3", "digits:4", "digits:8"),
    *("vision8:2", "vision8:3", "vision8:4", "vision8:8", "text6:2"),
)
OURS = (
    "Bayesian MAP",
    "Bayesian MAP, refined front",
    "Bayesian MAP, angular bins",
    "MAP, half verified",
    "nested MAP",
)
MODELLED = "qLogNEHVI (BoTorch)"
Trace = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Coefficients [K, N] and metrics [K, T] that count, and the cost [K] at which each was known, in whole candidates."""


@dataclass(frozen=True)
class Arena:
    """One study, its directions, and the way to measure."""

    study: Study
    measurer: Measurer

    @property
    def sign_T(self) -> np.ndarray:
        return np.where(self.study.objectives.maximise, 1.0, -1.0)

    @property
    def folder(self) -> Path:
        """Where the runs on this study are kept: the same models on other data are another one."""
        return home_folder() / "sample_efficiency" / self.study.digest

    def volume(self) -> Callable[[np.ndarray], float]:
        """Metrics to hypervolume, against the worst single model on each task."""
        maximise = self.study.objectives.maximise
        reference_T = worst_metrics(self.measure(np.eye(len(self.study.models)))[0], maximise=maximise)
        return functools.partial(hypervolume, reference_T=reference_T, maximise=maximise)

    def measure(self, c_kN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.measurer.measure_with_noise(c_kN, self.study.search_tasks)

    def search(self, seed: int, **options: Any) -> Search:
        config = self.study.config.model_dump(exclude={"search"}) | {"search": {"seed": seed, **options}}
        return new_search(parse_config(config))


def trace_of_rival(arena: Arena, make: Callable[[int, int, int], Any], budget: int, seed: int) -> Trace:
    """A rival until its budget is spent."""
    models, tasks = len(arena.study.models), len(arena.study.objectives.names)
    rival = make(models, tasks, seed)
    c_KN, metrics_KT = np.empty((0, models)), np.empty((0, tasks))
    while len(c_KN) < budget:
        asked = rival.ask()
        found, _ = arena.measure(asked)
        rival.tell(asked, found * arena.sign_T)
        c_KN, metrics_KT = np.vstack([c_KN, asked]), np.vstack([metrics_KT, found])
    return c_KN[:budget], metrics_KT[:budget], np.arange(1, budget + 1.0)


def trace_of_bayesian_map(arena: Arena, budget: int, seed: int, **options: Any) -> Trace:
    """Bayesian MAP in rounds."""
    batch = BATCHES[len(arena.study.models)]
    search = arena.search(seed, method="bayesian_map", samples=budget, batch=batch, **options)
    while len(asked := search.ask()):
        search.tell(asked, *arena.measure(asked))
    return search.coefficients_KN, search.metrics_KT, np.arange(1, budget + 1.0)


def trace_of_map(arena: Arena, budget: int, seed: int) -> Trace:
    """Plain MAP with half of a budget, whose front is verified with the other half; one such run for each budget."""
    c, metrics, cost = [], [], []
    models = len(arena.study.models)
    for total in sorted({*range(max(8, 2 * (models + 1)), budget, max(4, budget // 10)), budget}):
        search = arena.search(seed, method="map", samples=total // 2)
        asked = search.ask()
        search.tell(asked, *arena.measure(asked))
        front = search.front(FrontConfig(generations=100))
        chosen = spread_points(front.predicted_PT, total - len(asked), maximise=arena.study.objectives.maximise)
        found, _ = arena.measure(front.coefficients_PN[chosen])
        c.append(np.vstack([asked, front.coefficients_PN[chosen]]))
        metrics.append(np.vstack([search.metrics_KT, found]))
        cost.append(np.full(len(c[-1]), float(total)))
    return np.vstack(c), np.vstack(metrics), np.concatenate(cost)


def trace_of_nested_map(arena: Arena, budget: int, seed: int) -> Trace:
    """Nested MAP with more and more samples a pair; candidates of its last pair, and as many points of its front.

    What counts is measured on every task; what it measured on fewer on the way there counts by their share.
    """
    c, metrics, cost = [], [], []
    tasks = len(arena.study.objectives.names)
    for samples in (6, 8, 10, 14, 20, 30):
        search = arena.search(seed, method="nested_map", samples=samples, order="given")
        pairs = 0
        while len(asked := search.ask()):
            wanted = search.wanted_KT
            assert wanted is not None
            found, noise = arena.measure(asked)  # on all tasks, so that one ledger serves all; only the wanted count
            pairs += int(wanted.sum())
            search.tell(asked, np.where(wanted, found, np.nan), noise)
        front = search.front(FrontConfig(generations=100))
        chosen = spread_points(front.predicted_PT, samples, maximise=arena.study.objectives.maximise)
        verified, _ = arena.measure(front.coefficients_PN[chosen])
        total = pairs / tasks + len(chosen)
        if total > budget:
            break
        whole = np.isfinite(search.metrics_KT).all(axis=1)
        c.append(np.vstack([search.coefficients_KN[whole], front.coefficients_PN[chosen]]))
        metrics.append(np.vstack([search.metrics_KT[whole], verified]))
        cost.append(np.full(len(c[-1]), total))
    if not c:
        return np.empty((0, len(arena.study.models))), np.empty((0, tasks)), np.empty(0)
    return np.vstack(c), np.vstack(metrics), np.concatenate(cost)


def methods(models: int) -> dict[str, Callable[[Arena, int, int], Trace]]:
    """Every method by name."""

    def bayesian(**options: Any) -> Callable[[Arena, int, int], Trace]:
        return lambda arena, budget, seed: trace_of_bayesian_map(arena, budget, seed, **options)

    def rival(make: Callable[[int, int, int], Any]) -> Callable[[Arena, int, int], Trace]:
        return lambda arena, budget, seed: trace_of_rival(arena, make, budget, seed)

    ours = (
        bayesian(),
        bayesian(acquisition="front"),
        bayesian(acquisition="angular_bins"),
        trace_of_map,
        trace_of_nested_map,
    )
    found = dict(zip(OURS, ours, strict=True)) | {name: rival(make) for name, make in rivals(BATCHES[models]).items()}
    if models > 4:
        del found[OURS[1]]  # is what it chooses by itself
        del found[MODELLED]  # qLogNParEGO takes minutes for each round
    return found


def study_named(name: str) -> Study:
    """``digits:N``, or the first N tasks of a suite on fewer examples."""
    suite, _, count = name.partition(":")
    models = int(count)
    if suite == "digits":
        return prepare(study_config(tasks=models), home_folder())
    config = parse_config(import_module(f"benchmarks.suites.{suite}").build(home_folder())).first(models)
    limit = PICTURES[models] if suite == "vision8" else TEXTS
    tasks = [
        task.model_copy(update={"dataset": task.dataset.model_copy(update={"limit": limit, "test_split": None})})
        for task in config.tasks
        if task.dataset is not None
    ]
    # float32 is the faster one on the CPUs that these tables were made on
    execution = config.execution.model_copy(update={"precision": "float32"}) if suite == "text6" else config.execution
    return prepare(config.model_copy(update={"tasks": tasks, "execution": execution}), home_folder())


def kept_trace(arena: Arena, name: str, method: Callable[..., Trace], budget: int, seed: int) -> Trace:
    """A run, from its file when it was done before."""
    folder = arena.folder
    file = folder / f"{''.join(ch if ch.isalnum() else '-' for ch in name)}-{seed}.npz"
    if not file.is_file():
        begun = time.perf_counter()
        trace = method(arena, budget, seed)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file.with_suffix(".part.npz"), c=trace[0], metrics=trace[1], cost=trace[2])
        file.with_suffix(".part.npz").rename(file)
        study = f"{arena.study.config.name}, N = {len(arena.study.models)}"
        print(f"{study}, {name}, seed {seed}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    with np.load(file) as found:
        return found["c"], found["metrics"], found["cost"]


@dataclass(frozen=True)
class Curves:
    """Share of the reference's hypervolume at each of ``costs`` [C], for each method [seeds, C].

    ``budget`` is what ours spend at most; a method that ends before the last cost keeps its last value.
    """

    name: str
    costs: np.ndarray
    budget: int
    shares: dict[str, np.ndarray]
    reference: int


def curves(name: str) -> Curves:
    """All methods and seeds on one study."""
    study = study_named(name)
    models = len(study.models)
    budget = BUDGETS[models]
    seeds = range(FEWER_SEEDS.get(name, SEEDS[models]))
    found: dict[str, list[Trace]] = {}
    with Measurer(study) as measurer:
        arena = Arena(study, measurer)
        volume = arena.volume()
        for label, method in methods(models).items():
            far = budget if label in OURS else LONGER.get(models, budget)
            found[label] = [kept_trace(arena, label, method, far, seed) for seed in seeds]
    together = [np.concatenate([traces[seed][1] for traces in found.values()]) for seed in seeds]
    reference = float(np.mean([volume(metrics) for metrics in together]))
    step = 1 if models <= 4 else 6
    costs = np.arange(2 * (models + 1), LONGER.get(models, budget) + 1, step)
    shares = {
        label: np.array([shares_of(trace, costs, volume) / reference for trace in traces])
        for label, traces in found.items()
    }
    return Curves(name, costs, budget, shares, round(np.mean([len(metrics) for metrics in together])))


def shares_of(trace: Trace, costs: np.ndarray, volume: Callable[[np.ndarray], float]) -> np.ndarray:
    """Hypervolume at each cost; a method with a run for each cost has the best of those it could afford."""
    _, metrics, cost = trace
    separate = len(cost) > 1 and (np.diff(cost) == 0).any()
    found = []
    for limit in costs:
        if separate:
            runs = [volume(metrics[cost == total]) for total in np.unique(cost[cost <= limit])]
            found.append(runs[-1] if runs else 0.0)
        else:
            found.append(volume(metrics[cost <= limit]))
    return np.array(found)


def needed(shares_C: np.ndarray, costs: np.ndarray, level: float) -> float:
    """The first cost at which the level is reached; inf when never."""
    reached = np.flatnonzero(shares_C >= level)
    return float(costs[reached[0]]) if len(reached) else np.inf


def table(found: Curves) -> list[dict[str, object]]:
    """A line a method: share at some costs, costs for some shares (median over the seeds)."""
    rows = []
    last = len(found.costs) - 1
    marks = sorted({0, last // 4, last // 2, last, int(np.searchsorted(found.costs, found.budget))})
    for label, shares in found.shares.items():
        row: dict[str, object] = {"method": label}
        for mark in marks:
            row[f"at {found.costs[mark]}"] = f"{shares[:, mark].mean():.3f} ± {shares[:, mark].std(ddof=1):.3f}"
        for level in SHARES:
            value = float(np.median([needed(s, found.costs, level) for s in shares]))
            row[f"for {level:.0%}"] = f"{value:.0f}" if np.isfinite(value) else f"> {found.costs[-1]}"
        rows.append(row)
    return rows


def verdict(found: Curves) -> str:
    """How far behind the best rival Bayesian MAP's mean ever is, and what it needs for what a rival has in the end."""
    means = {label: shares.mean(axis=0) for label, shares in found.shares.items()}
    theirs = np.max([mean for label, mean in means.items() if label not in OURS], axis=0)
    own = means[OURS[0]]
    within = found.costs <= found.budget
    gap = (theirs - own)[within]
    worst = int(gap.argmax())
    spread = found.shares[OURS[0]][:, worst].std(ddof=1) / np.sqrt(len(found.shares[OURS[0]]))
    last = float(theirs[-1])
    taken = needed(own, found.costs, 0.98 * last)
    for_it = (
        f"{taken:.0f} of {found.costs[-1]} evaluations ({taken / found.costs[-1]:.2f})" if taken < np.inf else "none"
    )
    return (
        f"{OURS[0]} against the best rival at each number of evaluations: ahead or level at "
        f"{np.mean(gap <= 0):.0%} of them, at worst {max(gap[worst], 0):.4f} behind (at {found.costs[worst]}; standard "
        f"error {spread:.4f}), at best {-gap.min():.4f} ahead (at {found.costs[int(gap.argmin())]}). For 98 % of what "
        f"the best rival has after {found.costs[-1]}, it takes {for_it}."
    )


def picture(found: Curves) -> bytes:
    """Mean over the seeds with a band of one deviation."""
    from mergecore.pictures.drawing import FONT, GREY, INK, SERIES, bare, new_figure, to_png

    figure = new_figure((8.4, 5.0), f"{found.name}: hypervolume against evaluated coefficient vectors")
    axes = figure.subplots()
    bare(axes)
    others = iter((GREY, "#9aa5b1", "#c3a34d", "#c77", "#8a6d9b", INK))
    for label, shares in found.shares.items():
        ours = label in OURS
        color = SERIES[OURS.index(label)] if ours else next(others)
        mean, spread = shares.mean(axis=0), shares.std(axis=0, ddof=1)
        shown = mean > 0
        style: dict[str, Any] = {"linewidth": 2.2 if label == OURS[0] else 1.2, "linestyle": "-" if ours else "--"}
        axes.plot(found.costs[shown], mean[shown], color=color, label=label, **style)
        axes.fill_between(
            found.costs[shown], (mean - spread)[shown], (mean + spread)[shown], color=color, alpha=0.12, linewidth=0
        )
    low = min(s.mean(axis=0)[len(found.costs) // 8] for s in found.shares.values() if s.mean(axis=0)[0] > 0)
    axes.set_ylim(max(0.0, low - 0.05), 1.005)
    axes.set_xlabel("evaluated coefficient vectors", family=FONT, size=9)
    axes.set_ylabel("share of the reference's hypervolume", family=FONT, size=9)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    return to_png(figure)


NOTE = f"""\
Share of the hypervolume of everything that all methods together evaluated with one seed (mean over the seeds), \
against the worst single model on each task; real metrics on validation data; mean ± deviation over seeds ({SEEDS[2]} \
at N = 2, {FEWER_SEEDS["text6:2"]} on text6, {SEEDS[4]} at N = 3 and 4, {SEEDS[8]} at N = 8, \
{FEWER_SEEDS["vision8:8"]} on vision8) of the search on the same models. \
vision8 is measured on {PICTURES[2]} pictures of each set at N = 2 and 4, on {PICTURES[3]} at N = 3 and 8, \
text6 on {TEXTS} texts. \
*For 95 %*: median number of evaluated coefficient vectors. Bayesian MAP and qLogNEHVI propose {BATCHES[2]} a round \
({BATCHES[8]} at N = 8) after 2 (N + 1) first ones; at N = 8 rivals go on to {LONGER[8]}, but for BoTorch's \
(qLogNParEGO takes minutes a round), which is left out. *MAP, half verified* is a run of its own for each budget: half \
samples, half points of its front. *Nested MAP* is one for each number of samples a pair; only what it measured on all \
tasks counts, and its cost is (coefficients, task) evaluations / N. Accuracies on few examples are noisy, and the \
reference takes the best of all noise, so 99 % may be out of everybody's reach.

Findings. What each part of Bayesian MAP is for:

*First round.* One that covers the box spends most of it on merges that are bad on every task: of four models its \
coefficients sum to 2, and those on the front of digits:4 to 0.1 to 1.1. Around the convex hull of base and models ten \
evaluations have 0.63 of the hypervolume instead of 0.22. Two models' box is little larger than that hull: there the \
first round covers it, which is better on digits:2 (0.864 after 6 instead of 0.832; 5 seeds).

*Quadratic and radial covariance.* The quadratic wins while evaluations are few and the Gaussian process later. With \
the fitted quadratic as the process's mean a search was too sure of it to look elsewhere; with one that fades as \
evaluations come it was level with qLogNEHVI or ahead. With both inferred together (a quadratic's covariance beside a \
radial one) it has 0.911 instead of 0.889 of the hypervolume after 50 on vision8:3 (3 seeds), and no more on digits:4. \
How much of each is expected before anything is learned: from three models on much more of the quadratic (variances 3 \
and 0.5 instead of 1 and 0.5) predicts better (negative log density -0.13 instead of 0.45 after 8 on digits:3, 0.33 \
instead of 1.50 after 10 on digits:4, 0.93 instead of 1.25 after 8 on vision8:3) and, of two or four seeds, takes 39 \
evaluations instead of 41 on digits:4 and 31 instead of 35 on vision8:3. With two models it is the other way round: a \
quadratic's variance is largest in the corners, where the first rounds went, and what the spread of a few evaluations \
tells of a smooth deviation is far below its variance. A radial variance of 10 instead of 1 beside 0.3 of the \
quadratic has 0.013 more of the hypervolume after 8 and after 10 on vision8:2 (standard error of the difference \
0.004), and 0.005 more from there to the end; on digits:2 it is level.

*Rough, not noise.* All candidates see the same examples, so an accuracy that is a little higher by chance is so for \
good and counts. A third covariance that ends within a twentieth of the box takes the place of learned noise; then \
improvement is over what was measured, not over what noise leaves of it. On vision8:2 98 % of the best rival's last \
take 20 evaluations instead of 22 (10 seeds), and after 39 there is 1.002 instead of 0.996 of it. Ends within a \
fiftieth or a tenth make no difference. On digits:2 it is level, on digits:3 up to 0.010 ahead at 14 to 20 evaluations \
and level later (3 seeds).

*Reference point.* Hypervolume that counts from the worst of everything evaluated is found among merges that are worse \
than every single model on some task, the more so the worse a merge was tried. From the worst of the single models, as \
the processes predict it: 98 % of what qLogNEHVI has after 60 on digits:4 takes 41 instead of 47 (2 seeds). Lower by \
the prediction's standard deviation, two models take 14 instead of 16 on digits:2 (5 seeds).

*Falling mean.* Without it a search tries each far corner of the box once, since a quadratic of unknown sign hopes as \
much as it fears; with it vision8:3 takes 34 evaluations instead of 40 for 98 % of what qLogNEHVI has after 50 (5 \
seeds).

*Verified points.* With every third candidate on the predicted front, vision8:2 takes 23 evaluations instead of 22, \
and with three objectives it costs more than it brings; so none is, unless asked for. Starts of the acquisition's \
maximisation around the best points so far changed nothing on digits:4 (39 and 38 evaluations).

*Where a rival is ahead.* From three models on and on vision8:2 nobody is. On digits:2 qLogNEHVI on its own processes \
is, after the same first round, by 0.001 of the best rival's last at 7 and 9 evaluations (0.1 standard errors of \
Bayesian MAP's mean). On text6:2 (5 seeds) the first Sobol point after the first round is by 0.039 (2.4; 2.0 of the \
difference over the seeds) and the third by 0.010 (0.6), and qLogNEHVI is at 20 to 28 by 0.004 to 0.019 (at most 1.8 \
and 1.7); from 29 on nobody is. digits:4 was measured when the processes still learned noise (since then one seed has \
0.005 more in the middle and at the end); digits:8 is searched without them.

*Eight models.* Points of the predicted front have 0.844 of the hypervolume after 120 on digits:8, where angular bins \
have 0.655; on vision8:8 it is 0.709 and 0.749 (2 seeds), and a rival has 0.645 after 360.

*How few examples are too few.* On 200 pictures of each set vision8:2 has 18 by 53 different pairs of accuracies that \
are better than the single models', and one picture is worth more than what methods differ by: there the best rival's \
98 % took 31 of 40 evaluations; on 600 pictures, with the same search, 23. On vision8:4 they take 47 of 60 on 200 \
pictures, ahead everywhere, but by no more than 0.023 of the hypervolume from 34 evaluations on, and 39 on 600 (5 \
seeds each).

*How far one can get.* Chosen greedily with all metrics known, noise too, 20 candidates of all that were ever \
evaluated on digits:4 have 0.86 of their hypervolume, 40 have 0.91 and 60 have 0.93."""


def main(names: list[str] | None = None) -> None:
    """Measure the named studies; of the others, the page keeps what it has."""
    page = RESULTS / "sample_efficiency.md"
    sections = sections_of(page.read_text("utf-8")) if page.is_file() else {}
    for name in names or list(DEFAULT):
        found = curves(name)
        file = f"sample_efficiency_{name.replace(':', '_')}.png"
        (RESULTS / file).write_bytes(picture(found))
        sections[name] = (
            f"## {name}\n\n{verdict(found)} Reference: {found.reference} candidates.\n\n{markdown(table(found))}\n\n"
            f"![{name}]({file})\n"
        )
        print(sections[name], flush=True)
        ordered = [
            sections[known] for known in (*DEFAULT, *sorted(sections.keys() - set(DEFAULT))) if known in sections
        ]
        head = f"# sample_efficiency\n\n{NOTE}\n\nMade by `python -m benchmarks sample_efficiency` on {machine()}.\n\n"
        atomic_write(page, head + "\n".join(ordered))


def sections_of(page: str) -> dict[str, str]:
    """What a page has on each study, by the study's name."""
    _, *parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    return {part.partition("\n")[0].removeprefix("## "): part.rstrip("\n") + "\n" for part in parts}


if __name__ == "__main__":
    main(sys.argv[1:])
