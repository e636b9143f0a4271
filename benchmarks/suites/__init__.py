"""Suites of real models on real data: one base, fine-tuned on each of several tasks with a head of its own.

Models are trained once, from the folder named by MERGECORE_DATA (by default ``../shared/data`` from the project's
root), into ``MERGECORE_HOME/suites``. Without that folder everything here says so in one line and does nothing.

    python -m benchmarks.suites build [NAME …]
    python -m benchmarks.suites run [NAME …]
    python -m benchmarks.suites compare [vision8 | text6]

A suite is a module with `build`, which returns the study as a config, and a line in `SUITES`.
"""

from __future__ import annotations

from typing import Any

SUITES = {
    "vision8": "a small vision transformer on eight sets of pictures, at most 600 of each test split; "
    "for eight tasks 120 samples, the paper has 250",
    "resnet3": "a real CIFAR-10 ResNet-20 on three sets, batch-norm statistics estimated again after each merge",
    "lm4": "a real tiny Llama on four corpora, by perplexity. The second recipe: with the first (400 and 200 steps, "
    "the latter at 1e-3) the average was worse than the base, seen on test too; with this one it still is",
    "text6": "the real MiniLM-L6 encoder on six sets of texts, in bfloat16, on 64 validation and 200 test texts of "
    "each; for six tasks 56 samples, the paper has 100. The second recipe: with the first (90 steps at 1e-4) the "
    "average was worse than the base on validation",
}
"""Name to description; it opens the suite's page, so it says what differs from the paper and what was tried before."""

COMPARED: dict[str, dict[str, Any]] = {
    "vision8": {
        "multitask_for": range(2, 9),
        "budget": {"transforms_for": (2, 3, 8)},
        "findings": "MAP's mean is above TIES, DARE-TIES, task arithmetic, task arithmetic with the preference as "
        "weights and the soup at every N; up to N = 7 it is above every merge but MAP under TSV-M. With eight tasks "
        "TSV-M and Iso-C with one scale reach it: the base saw the mixture of the eight sets and is at 0.671 itself, so "
        "there is little to gain, and differences there are below the error of 600 pictures a set. MAP under TSV-M has "
        "the largest share of the hypervolume at N = 2, 3 and 8; MAP under DARE has the smallest of the four at N = 2 "
        "and 3, under TIES at N = 8. Validation pictures of gtsrb are near those of training, so its fronts are "
        "predicted, rightly for validation, higher than they are on test.",
    },
    "text6": {
        # a step of AdaMerging takes a second a task
        "multitask_for": (2, 3, 6),
        "budget": {"transforms_for": (2, 6), "adamerging_for": (2,)},
        "findings": "MAP's mean is above TIES, DARE-TIES, task arithmetic, task arithmetic with the preference as "
        "weights and the soup from N = 3 on. At N = 2 task arithmetic and DARE-TIES are 0.005 and 0.007 above it: both "
        "tasks are served by one point nearly as well as by two models (0.855), so a front has little to offer, and MAP "
        "chooses among its points by surrogates of 64 validation texts a task (an error of 0.05 each; R² 0.65 on sst2), "
        "where one scale for all has little to get wrong; the error of 400 test texts is 0.018. Methods that change the "
        "task vectors themselves go further than any coefficients of the plain ones: TSV-M and Iso-C from N = 4, and "
        "RegMean, which sees the models' data, at every N. Of the fronts, MAP under DARE has the largest share of the "
        "hypervolume at N = 2 and under TSV-M at N = 6; under TSV-M at N = 2 it fails, because half of the singular "
        "directions of each model are dropped and coefficients end at the box's upper bound of 2.",
    },
}
"""Suites that all methods are compared on: for which numbers of models what is dear is done, and what was found."""
