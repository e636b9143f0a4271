"""What tests of served fronts share: two models, three points, and the logits that evaluators have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mergecore.config_file import parse_config
from mergecore.evaluation import CandidateEvaluator
from mergecore.serving import FrontPoints, ServedFront, write_front
from mergecore.study import Study, prepare

POINTS = FrontPoints(
    np.array([[1.0, 0.0], [0.7, 0.6], [0.1, 0.9]]),
    np.array([[0.9, 0.2], [0.7, 0.7], [0.1, 0.9]]),
    (True, True),
    "none",
)
"""Two models, two tasks; each point is preferred somewhere."""


def two_tasks(places: dict[str, str], *, name: str = "t", **task: Any) -> dict[str, Any]:
    data = {"path": places["data"], "split": "validation"}
    return {
        "base": places["base"],
        "models": [{"name": n, "source": places[n]} for n in ("first", "second")],
        "tasks": [{"name": f"{name}{i}", "dataset": data, **task} for i in (1, 2)],
    }


@pytest.fixture
def study(pico_config: dict[str, Any], home: Path) -> Study:
    return prepare(parse_config(pico_config), home)


def served(study: Study, folder: Path, points: FrontPoints | None = POINTS, **options: Any) -> ServedFront:
    write_front(study, points, folder)
    return ServedFront(folder, threads=1, **options)


def evaluators_logits(study: Study, coefficients: np.ndarray, index: int = 0) -> np.ndarray:
    """Logits of the task's own data, as its evaluator has them."""
    evaluator = CandidateEvaluator(study)
    evaluator.merge(coefficients)
    own: Any = evaluator.evaluator(index)
    candidate = evaluator.candidate(coefficients, study.measured[index].head)
    return own.logits(candidate, np.arange(own.examples)).numpy()


def probabilities(table: pd.DataFrame) -> np.ndarray:
    return table[[column for column in table if column.startswith("p.")]].to_numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()


def images_of(places: dict[str, str]) -> np.ndarray:
    with np.load(places["data"]) as data:
        return data["x_validation"]
