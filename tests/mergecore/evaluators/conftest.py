"""Networks that the evaluators of the contract suite measure, each with its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.mergecore.evaluators.pico_clip import transformers_clips
from tests.mergecore.evaluators.pico_texts import family, labelled


@pytest.fixture
def pico_clip(tmp_path: Path) -> dict[str, str]:
    """A base and two fine-tuned one-layer CLIPs as hub folders with their tokenizer."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x_validation=images, y_validation=generator.integers(0, 3, 40))
    places = dict(zip(("base", "first", "second"), transformers_clips(tmp_path), strict=True))
    return places | {"data": str(tmp_path / "images.npz")}


@pytest.fixture
def pico_classifier(tmp_path: Path) -> dict[str, str]:
    """A base and two fine-tuned pico GPT-2s that classify texts, without a padding token as the hub's."""
    places = family(tmp_path, "gpt2", num_labels=3, pad_token_id=None)
    return places | {"data": labelled(tmp_path / "texts.jsonl")}


@pytest.fixture
def pico_language_model(tmp_path: Path) -> dict[str, str]:
    """A base and two fine-tuned pico Llamas that predict the next word."""
    return family(tmp_path, "llama-lm") | {"data": labelled(tmp_path / "texts.jsonl")}


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lm-evaluation-harness, its data in a cache of the test's own; tests without it are skipped."""
    pytest.importorskip("lm_eval", reason="install mergecore[lm-eval]")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def pico_harness(harness: None, pico_language_model: dict[str, str]) -> dict[str, str]:
    """`pico_language_model`, where there is a harness to measure it."""
    return pico_language_model
