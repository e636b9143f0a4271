"""Networks that the evaluators of the contract suite measure, each with a labelled .npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.mergecore.evaluators.pico_clip import transformers_clips


@pytest.fixture
def pico_clip(tmp_path: Path) -> dict[str, str]:
    """A base and two fine-tuned one-layer CLIPs as hub folders with their tokenizer."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x_validation=images, y_validation=generator.integers(0, 3, 40))
    places = dict(zip(("base", "first", "second"), transformers_clips(tmp_path), strict=True))
    return places | {"data": str(tmp_path / "images.npz")}
