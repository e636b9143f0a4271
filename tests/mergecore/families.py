"""What tests of families of networks share: pico checkpoints, a study of them, a worker's network in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mergecore.architectures.hub_transformers import quiet_transformers
from mergecore.config_file import parse_config
from mergecore.evaluation import CandidateEvaluator
from mergecore.study import Study, prepare

C = np.array([0.4, 0.7])


def prepared(tmp_path: Path, home: Path, base: object, models: list[object], **changes: object) -> Study:
    (tmp_path / "scores_of_test.py").write_text("def score(candidate):\n    return 0.5\n")
    task = {"evaluator": "python", "metric": "score", "direction": "maximize"}
    config = {
        "base": str(base),
        "models": [{"name": f"m{n}", "source": str(model)} for n, model in enumerate(models)],
        "tasks": [{"name": f"m{n}", "args": {"function": "scores_of_test:score"}, **task} for n in range(2)],
        **changes,
    }
    return prepare(parse_config(config), home)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def moved(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The same network with other parameters and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.dtype.is_floating_point:
                tensor.add_(0.03 * torch.randn(tensor.shape, generator=generator).abs())
    return module


def in_memory(study: Study, inputs: Callable[[torch.nn.Module], torch.Tensor], head: str | None = None) -> torch.Tensor:
    evaluator = CandidateEvaluator(study)
    assert not any(outcome.reason for outcome in evaluator.evaluate(C, [0]))
    candidate = evaluator.candidate(C, head)
    with candidate.forward():
        return inputs(candidate.module())


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def reloaded(cls: type, folder: Path) -> torch.nn.Module:
    with quiet_transformers():
        loaded = cls.from_pretrained(folder)
    return loaded.eval()


def saved(cls: type, config: object, folder: Path, seeds: int = 3, first: int = 0) -> list[Path]:
    torch.manual_seed(0)
    places = []
    with quiet_transformers():
        module = cls(config)
        for seed in range(first, first + seeds):
            places.append(folder / str(seed))
            moved(module, seed).save_pretrained(places[-1])
    return places


TEXT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IDS = torch.tensor([[3, 9, 40, 7], [5, 5, 1, 2]])
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
