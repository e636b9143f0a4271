"""Hypervolume of everything evaluated so far, against the number of evaluations, for our searches and their rivals.

``python -m benchmarks.sample_efficiency [digits:2 | vision8:3 | text6:2 …]``. All methods measure the same models on
the same validation data; seeds are of the searches. The reference is the hypervolume of everything that all methods
evaluated together with one seed.

Shape suffixes: C costs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.measuring import Measurer
from benchmarks.search_traces import (
    BATCHES,
    BUDGETS,
    LEFT_OUT,
    LONGER,
    OURS,
    PICTURES,
    TEXTS,
    Arena,
    Trace,
    kept_trace,
    methods,
    study_named,
)
from benchmarks.tables import RESULTS, machine, markdown
from mergecore.files import atomic_write

SEEDS = {2: 10, 3: 5, 4: 5, 8: 5}
"""By N."""
FEWER_SEEDS = {"text6:2": 5}
"""Where a candidate takes more than a second."""
SHARES = (0.90, 0.95, 0.98, 0.99)
DEFAULT = (
    *("digits:2", "digits:3", "digits:4", "digits:8"),
    *("vision8:2", "vision8:3", "vision8:4", "vision8:8", "text6:2", "text6:3"),
)


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
        for label, method in methods(name).items():
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

    figure = new_figure((9.6, 5.0), f"{found.name}: hypervolume against evaluated coefficient vectors")
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
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))  # curves are everywhere
    return to_png(figure)


NOTE = f"""\
Share of the hypervolume of everything that all methods together evaluated with one seed (mean over the seeds), \
against the worst single model on each task; real metrics on validation data; mean ± deviation over seeds ({SEEDS[2]} \
at N = 2, but {FEWER_SEEDS["text6:2"]} on text6; else {SEEDS[8]}) of the search on the same models. \
vision8 is measured on {PICTURES[2]} pictures of each set at N = 2 and 4, on {PICTURES[3]} at N = 3 and 8, \
text6 on {TEXTS} texts. \
*For 95 %*: median number of evaluated coefficient vectors. Bayesian MAP and qLogNEHVI propose {BATCHES[2]} a round \
({BATCHES[8]} at N = 8) after 2 (N + 1) first ones; at N = 8 rivals go on to {LONGER[8]}, but for BoTorch's \
(qLogNParEGO takes minutes a round), which is left out. *MAP, half verified* is a run of its own for each budget: half \
samples, half points of its front. *Nested MAP* is one for each number of samples a pair; only what it measured on all \
tasks counts, and its cost is (coefficients, task) evaluations / N. Both are left out on {", ".join(LEFT_OUT)}, where \
they have nearly as many candidates to measure as all others together. Accuracies on few examples are noisy, and the \
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

*Where a rival is ahead.* With three, four and eight models on digits and vision8 and with two on vision8 nobody is. \
On digits:2 qLogNEHVI on its own processes is, after the same first round, by 0.001 of the best rival's last at 7 and \
9 evaluations (0.1 standard errors of Bayesian MAP's mean). On text6:2 (5 seeds) the first Sobol point after the \
first round is by 0.039 (2.4; 2.0 of the difference over the seeds) and the third by 0.010 (0.6), and qLogNEHVI is at \
20 to 28 by 0.004 to 0.019 (at most 1.8 and 1.7); from 29 on nobody is. On text6:3, whose best merges have \
coefficients that sum to 1.2 to 1.6, beyond the hull, the first round has 0.084 less than Sobol's (1.6 standard \
errors of the difference) and what is best after 9 to 17 evaluations is ahead by 0.025 to 0.141 (at 11 pymoo's random \
first generation by 0.126, 3.8; at 13 TPE by 0.141, 2.5); from 18 on nobody is, but for 0.003 at 20. With sums up to \
1.8 instead of 1.4 in the first round (5 seeds) it has 9 % more after 8, 3 % more after 17, 2 % more after 29 and as \
much after 50 there, 4 % less on vision8:3 after 26 (4 seeds) and as much, within 1 %, on digits:3 after 26 and on \
digits:4 after 31; a first round over the box, as `sampler: sobol`, has 15 %, 7 % and 2 % more on text6:3 after 8, 17 \
and 29 (3 seeds). Of no use: a reference point no lower than what was evaluated (there and on vision8:3), and rounds \
that go only a little farther from the base than those before (on vision8:3). digits:4 was measured when the \
processes still learned noise (since then one seed has 0.005 more in the middle and at the end); digits:8 is searched \
without them.

*Eight models.* Points of the predicted front have 0.837 of the hypervolume after 120 on digits:8, where angular bins \
have 0.649; on vision8:8 it is 0.701 and 0.734, and a rival has 0.646 after 360.

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
