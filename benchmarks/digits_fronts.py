"""MAP against direct search on the digits, with the budgets of MAP's Tables 2 and 3, over several seeds.

A seed is a training of the models, a draw of MAP's samples and another of direct search's. Fronts are found on the
validation split. R² is on direct search's evaluations, none of which a surrogate has seen. Win rate, GD and IGD
compare 100 points of MAP's front, evaluated for real, with direct search's front; on the test split both fronts are
measured on images that took no part in finding either.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from benchmarks.measuring import Measurer
from benchmarks.tables import write_table
from mergecore.digits import study_config
from mergecore.files import home_folder
from mergecore.fronts.config import FrontConfig
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.indicators import (
    generational_distance,
    hypervolume,
    inverted_generational_distance,
    win_rate,
)
from mergecore.study import Study, new_search, prepare
from mergecore.surrogates.quadratic import r_squared

PAPER = {2: (0.953, 0.4981), 3: (0.980, 0.4690), 4: (0.984, 0.5067), 8: (0.868, 0.6558)}
"""N to (R², win rate) of MAP, Tables 2 and 3."""
SEEDS = 5
POINTS = 100


def one_seed(models: int, seed: int) -> dict[str, float]:
    """Both searches for one seed, and every measure of them."""
    config = study_config(tasks=models, seed=seed)
    study = prepare(config, home_folder())
    with Measurer(study) as measurer:
        return compare_searches(study, measurer, seed)


def compare_searches(study: Study, measurer: Measurer, seed: int) -> dict[str, float]:
    """MAP and direct search on one study."""
    config, measure = study.config, measurer.measure
    goals, on_validation, on_test = study.objectives, study.search_tasks, study.held_out_tasks

    map_search = new_search(config)
    asked = map_search.ask()
    map_search.tell(asked, measure(asked, on_validation))
    begun = time.perf_counter()
    front = map_search.front(FrontConfig())
    front_seconds = time.perf_counter() - begun

    direct_config = config.model_copy(deep=True)
    direct = new_search(
        type(config).model_validate(direct_config.model_dump() | {"search": {"method": "direct", "seed": 1000 + seed}})
    )
    asked = direct.ask()
    direct.tell(asked, measure(asked, on_validation))
    direct_front = direct.front(FrontConfig())

    generator = np.random.default_rng(seed)
    drawn = generator.choice(len(front.coefficients_PN), min(POINTS, len(front.coefficients_PN)), replace=False)
    c, predicted = front.coefficients_PN[drawn], front.predicted_PT[drawn]
    real = measure(c, on_validation)
    test = measure(c, on_test)
    direct_test = measure(direct_front.coefficients_PN, on_test)

    held_out = [
        r_squared(direct.metrics_KT[:, t], fit.surrogate.predict(direct.coefficients_KN))
        for t, fit in enumerate(front.fits)
    ]
    together = np.concatenate([real, direct_front.real_PT])
    best = together[non_dominated(together, maximise=goals.maximise)]
    own = real[non_dominated(real, maximise=goals.maximise)]
    reference = together.min(axis=0)

    def volume(metrics: np.ndarray) -> float:
        return hypervolume(metrics, reference_T=reference, maximise=goals.maximise)

    def wins(x: np.ndarray, y: np.ndarray) -> float:
        return win_rate(x, y, maximise=goals.maximise, generator=np.random.default_rng(seed))

    return {
        "R²": float(np.mean(held_out)),
        "cross-validated R²": float(np.mean([fit.cross_validated_r2 for fit in front.fits])),
        "win rate": wins(real, direct_front.real_PT),
        "direct's win rate": wins(direct_front.real_PT, real),
        "win rate, test": wins(test, direct_test),
        "direct's win rate, test": wins(direct_test, test),
        "GD": generational_distance(own, best),
        "IGD": inverted_generational_distance(own, best),
        "direct's GD": generational_distance(direct_front.real_PT, best),
        "direct's IGD": inverted_generational_distance(direct_front.real_PT, best),
        "hypervolume / direct's": volume(real) / volume(direct_front.real_PT),
        "abs(predicted - real)": float(np.abs(predicted - real).mean()),
        "front s": front_seconds,
    }


def main() -> None:
    """All N and seeds; mean ± standard deviation."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    numbers = [int(text) for text in os.environ.get("DIGITS_MODELS", "2 3 4 8").split()]
    rows = []
    for models in numbers:
        found = []
        for seed in range(SEEDS):
            begun = time.perf_counter()
            found.append(one_seed(models, seed))
            print(f"N={models} seed={seed}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        config = study_config(tasks=models)
        direct = type(config).model_validate(config.model_dump() | {"search": {"method": "direct"}})
        row: dict[str, object] = {
            "N": models,
            "K MAP": new_search(config).budget,
            "K direct": new_search(direct).budget,
            "paper's R²": PAPER[models][0],
            "paper's win rate": PAPER[models][1],
        }
        for name in found[0]:
            values = np.array([measures[name] for measures in found])
            row[name] = f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"
        rows.append(row)
    columns = [{"measure": name} | {f"N = {row['N']}": row[name] for row in rows} for name in rows[0] if name != "N"]
    write_table(
        "digits_fronts", columns, note=f"Mean ± standard deviation over {SEEDS} seeds; validation split unless said."
    )


if __name__ == "__main__":
    main()
