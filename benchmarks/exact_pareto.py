"""Do losses follow the preference? PWE-MoE by linear scalarisation and by exact Pareto search on pairs of vision8.

Exact Pareto search moves the losses towards l_1 : l_2 = 1/r_1 : 1/r_2 as far as a network of the routers reaches that.

Shape suffixes: R preferences, T tasks.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.suites import vision8
from benchmarks.suites.data import data_folder
from benchmarks.tables import write_table
from mergecore.config_file import parse_config
from mergecore.evaluation import CandidateEvaluator
from mergecore.files import home_folder
from mergecore.pareto_moe.routed_study import route, train_routers
from mergecore.pareto_moe.scalarisation import non_uniformity
from mergecore.study import Study, prepare

PAIRS = (("mnist", "gtsrb"), ("clothing", "kannada_digits"), ("cifar10", "sign_digits"))
FIRST = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Preferences for the first task of a pair."""
STEPS, PICTURES = 1000, 600
NOTE = f"""\
Pairs of vision8, routers of attention and MLPs, {STEPS} steps of 16 pictures a task. Losses are cross-entropies on \
{PICTURES} pictures of each training split, at the preferences {", ".join(map(str, FIRST))} for the first task. \
*Non-uniformity*: Kullback-Leibler divergence of the normalised r ⊙ l from uniform, a mean over preferences; 0 is \
exactly in the preference's proportions. *Slope*: of log(l_1 / l_2) in log(r_2 / r_1); 1 follows the preference fully. \
*Weighted sum*: Σ r_t l_t, the mean over the preferences, which linear scalarisation descends."""


def pair_study(names: tuple[str, str], config: dict[str, Any], search: dict[str, Any]) -> Study:
    """Two models and their tasks."""
    tasks = [task for task in config["tasks"] if task["name"] in names]
    for task in tasks:
        task["dataset"] = task["dataset"] | {"train_split": "train"}
    models = [model for model in config["models"] if model["name"] in names]
    changes = {"models": models, "tasks": tasks, "search": {"method": "pwe_moe", "steps": STEPS, **search}}
    return prepare(parse_config(config | changes), home_folder())


def losses_of(study: Study, preferences_RT: np.ndarray) -> np.ndarray:
    """Cross-entropies on some of the training data, [R, T]."""
    evaluator = CandidateEvaluator(study)
    found = []
    for r_T in preferences_RT:
        evaluator.merge(r_T)
        row = []
        for index in study.training_tasks:
            candidate = evaluator.candidate(r_T, study.measured[index].head)
            own = evaluator.evaluator(index)
            rows = np.random.default_rng(0).permutation(own.examples)[:PICTURES]
            row.append(float(own.loss(candidate, rows)))
        found.append(row)
    return np.array(found)


def main() -> None:
    """Train on every pair in both ways, print and store the table."""
    if data_folder() is None:
        print("Skipped: the folder of real data is not there (name it with MERGECORE_DATA).")
        return
    preferences_RT = np.array([(first, 1 - first) for first in FIRST])
    target_R = np.log(preferences_RT[:, 1] / preferences_RT[:, 0])
    rows = []
    for names in PAIRS:
        for scalarisation in ("ls", "epo"):
            search = {"scalarisation": scalarisation, "modules": "attn+mlp"}
            study = pair_study(names, vision8.build(home_folder()), search)
            options: Any = study.config.search
            training, file = train_routers(route(study, options), options)
            losses_RT = losses_of(study.routed(file), preferences_RT)
            uneven = [non_uniformity(losses, r) for losses, r in zip(losses_RT, preferences_RT, strict=True)]
            rows.append(
                {
                    "pair": " and ".join(task.name for task in study.config.tasks),
                    "scalarisation": scalarisation,
                    "non-uniformity": float(np.mean(uneven)),
                    "slope": float(np.polyfit(target_R, np.log(losses_RT[:, 0] / losses_RT[:, 1]), 1)[0]),
                    "weighted sum": float((losses_RT * preferences_RT).sum(axis=1).mean()),
                    "losses at 0.1, 0.5, 0.9": ", ".join(f"({a:.2f}; {b:.2f})" for a, b in losses_RT[[0, 2, 4]]),
                    "no solution": f"{training.fallbacks} of {STEPS} steps",
                }
            )
            print(rows[-1], flush=True)
    write_table("exact_pareto", rows, note=NOTE)


if __name__ == "__main__":
    main()
