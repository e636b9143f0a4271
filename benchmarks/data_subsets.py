"""What it saves to measure most candidates on a part of the data: plain MAP on the digits.

``all data`` is MAP with the paper's number of samples, or a quarter of them, which is hardly more than a quadratic has
parameters. ``a quarter first`` measures the same samples on a quarter of each task's data, and the 0.4 of them that lie
nearest to the front on all of it. ``fewer samples`` spends on all data what that costs. A seed is a training of the
models and a draw of the samples. Points of each front are verified on all data of the search; the hypervolume is
theirs, against the worst of the single models, in shares of ``all data``'s. The surrogates' error is the root mean
square over unseen candidates, drawn uniformly.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.measuring import Measurer
from benchmarks.tables import write_table
from mergecore.budget import BudgetConfig
from mergecore.digits import study_config
from mergecore.fidelity import Correction, grown_count, nearest_front
from mergecore.files import home_folder
from mergecore.fronts.config import FrontConfig
from mergecore.fronts.indicators import hypervolume
from mergecore.fronts.spread import spread_points
from mergecore.measured import shares
from mergecore.sampling import sample
from mergecore.search.map import MapSearch
from mergecore.study import Study, new_search, prepare

MODELS = (2, 3, 8)
SEEDS = 3
BUDGET = BudgetConfig(share=0.25)
VERIFIED = 20
UNSEEN = 100
TIGHT = 4
"""What the paper's number of samples is divided by."""
WAYS = ("all data", "a quarter first", "fewer samples")


@dataclass(frozen=True)
class Found:
    """One search: what it cost, and its front.

    Attributes:
        full_pairs: (coefficient vector, task) evaluations, those on the part by their share.
        volume: hypervolume of the verified points.
        gap: mean absolute difference of predicted and real metrics there.
        error: of the surrogates on unseen candidates.
    """

    full_pairs: float
    volume: float
    gap: float
    error: float


def search_of(study: Study, samples: int) -> MapSearch:
    """Plain MAP with so many samples."""
    search = study.config.search.model_copy(update={"samples": samples})
    made = new_search(study.config.model_copy(update={"search": search}))
    assert isinstance(made, MapSearch)
    return made


def on_all_data(study: Study, measurer: Measurer, samples: int) -> Found:
    """Every candidate on all data."""
    search = search_of(study, samples)
    asked_KN = search.ask()
    search.tell(asked_KN, *measurer.measure_with_noise(asked_KN, study.search_tasks))
    return judged(study, measurer, search, float(search.pairs))


def on_a_part_first(study: Study, measurer: Measurer, samples: int) -> Found:
    """As a run does it: a part for all, all data for those near the front, estimates for the others."""
    search = search_of(study, samples)
    asked_KN, share_T = search.ask(), shares(study.measured)
    metrics_KT, noise_KT = measurer.measure_with_noise(asked_KN, study.part_tasks)
    count = grown_count(samples, BUDGET.grow)
    near = nearest_front(metrics_KT, noise_KT, count, maximise=study.objectives.maximise)
    whole_KT, whole_noise_KT = measurer.measure_with_noise(asked_KN[near], study.search_tasks)
    correction = Correction(share_T, study.objectives)
    correction.learn(metrics_KT[near], whole_KT)
    metrics_KT, noise_KT = correction.estimate(metrics_KT, noise_KT)
    metrics_KT[near], noise_KT[near] = whole_KT, whole_noise_KT
    search.tell(asked_KN, metrics_KT, noise_KT)
    return judged(study, measurer, search, samples * float(share_T.sum()) + len(near) * len(share_T))


def judged(study: Study, measurer: Measurer, search: MapSearch, full_pairs: float) -> Found:
    """The front of a search, verified."""
    maximise = study.objectives.maximise
    front = search.front(FrontConfig())
    chosen = spread_points(front.predicted_PT, VERIFIED, maximise=maximise)
    real_PT = measurer.measure(front.coefficients_PN[chosen], study.search_tasks)
    worst_T = measurer.measure(np.eye(len(study.models)), study.search_tasks).min(axis=0)
    volume = hypervolume(real_PT, reference_T=worst_T, maximise=maximise)
    unseen_KN = sample("uniform", UNSEEN, box=search.box_N2, seed=1000, anchors=False)
    predicted_KT = np.stack([fit.surrogate.predict(unseen_KN) for fit in front.fits], axis=1)
    error = np.sqrt(((predicted_KT - measurer.measure(unseen_KN, study.search_tasks)) ** 2).mean())
    return Found(full_pairs, volume, float(np.abs(front.predicted_PT[chosen] - real_PT).mean()), float(error))


def one_seed(models: int, seed: int, divided: int) -> tuple[Found, ...]:
    """All `WAYS`, with the paper's number of samples divided."""
    config = study_config(tasks=models, seed=seed).model_copy(update={"budget": BUDGET})
    study = prepare(config, home_folder())
    samples = new_search(config).budget // divided
    with Measurer(study) as measurer:
        quarter = on_a_part_first(study, measurer, samples)
        fewer = max(models + 1, int(quarter.full_pairs / models))
        return on_all_data(study, measurer, samples), quarter, on_all_data(study, measurer, fewer)


def main() -> None:
    """All numbers of models, of samples, and seeds."""
    rows = []
    for models, divided in itertools.product(MODELS, (1, TIGHT)):
        found = []
        for seed in range(SEEDS):
            begun = time.perf_counter()
            found.append(one_seed(models, seed, divided))
            print(
                f"N={models} 1/{divided} seed={seed}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True
            )
        for way, ofs in zip(WAYS, zip(*found, strict=True), strict=True):
            volumes = [of.volume / seed[0].volume for of, seed in zip(ofs, found, strict=True)]
            cost = np.mean([of.full_pairs for of in ofs])
            rows.append(
                {
                    "N": models,
                    "samples": f"{found[0][0].full_pairs / models:.0f}",
                    "measured on": way,
                    "cost, full pairs": f"{cost:.0f}",
                    "share of all data's": f"{cost / found[0][0].full_pairs:.2f}",
                    "hypervolume / all data's": _spread(volumes),
                    "abs(predicted - real)": _spread([of.gap for of in ofs]),
                    "surrogates' error": _spread([of.error for of in ofs]),
                }
            )
    note = f"Validation split, {VERIFIED} verified points; mean ± standard deviation over {SEEDS} seeds."
    write_table("data_subsets", rows, note=note)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


if __name__ == "__main__":
    main()
