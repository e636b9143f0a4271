"""Suites of real models on real data: one base, fine-tuned on each of several tasks with a head of its own.

Models are trained once, from the folder named by MERGECORE_DATA (by default ``../shared/data`` from the project's
root), into ``MERGECORE_HOME/suites``. Without that folder everything here says so in one line and does nothing.

    python -m benchmarks.suites build [NAME …]
    python -m benchmarks.suites run [NAME …]
    python -m benchmarks.suites compare [vision8 | text6]
    python -m benchmarks.suites routers [vision8 | text6]

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
    "vision8": {"multitask_for": range(2, 9), "budget": {"transforms_for": (2, 3, 8)}},
    # a step of AdaMerging takes a second a task
    "text6": {"multitask_for": (2, 3, 6), "budget": {"transforms_for": (2, 6), "adamerging_for": (2,)}},
}
"""Suites that all methods are compared on, and for which numbers of models what is dear is done."""

ROUTED: dict[str, dict[str, Any]] = {
    "vision8": {"counts": (2, 3, 8), "steps": 1000, "full_steps": 250, "full_rate": 5e-4, "preferences": 20},
    # a step of routers takes half a second a task, an evaluation on six tasks ten seconds
    "text6": {"counts": (2, 6), "steps": 150, "full_steps": 40, "full_rate": 5e-5, "preferences": 5},
}
"""Suites that PWE-MoE is compared on, for how many models, and how long is trained."""
