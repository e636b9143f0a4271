"""lm4: a real tiny Llama, fine-tuned on captions in three languages and on Shakespeare; by perplexity.

The network was trained on English dreams only, so a short training on the mixture of the four corpora comes first: it
makes the base from which all task vectors are taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.suites.data import data_folder, rows, write_rows
from benchmarks.suites.tiny_llama import write_llama
from benchmarks.suites.training import fit_aloud, recipe_folder, study
from mergecore.files import atomic_folder
from mergecore.training import Training, repeatable

TASKS = {
    "english": "lm_en_captions",
    "german": "lm_de_captions",
    "french": "lm_fr_captions",
    "shakespeare": "lm_en_shakespeare",
}
WINDOW = 128
PRE_TRAINING = Training(steps=150, batch=32, learning_rate=2e-3)
FINE_TUNING = Training(steps=150, batch=16, learning_rate=5e-4)
SEED = 0


def build(home: Path) -> dict[str, Any]:
    """Train what is not there yet, and return the study's config."""
    source = data_folder()
    assert source is not None
    folder = recipe_folder(home, "lm4", PRE_TRAINING, FINE_TUNING, TASKS, WINDOW, SEED)
    data = {task: write_rows("lm", name, folder / "data") for task, name in TASKS.items()}
    models = {task: folder / "models" / task for task in TASKS}
    base = folder / "base"
    if not base.is_dir() or not all(place.is_dir() for place in models.values()):
        from transformers import AutoTokenizer

        with repeatable(SEED):
            network = write_llama(source / "weights" / "aidreams260K", folder / "published")
            tokenizer = AutoTokenizer.from_pretrained(folder / "published", local_files_only=True)
            streams = {task: _windows(tokenizer, name) for task, name in TASKS.items()}
            _train(network, torch.cat([stream[:400] for stream in streams.values()]), PRE_TRAINING, "base")
            _save(network, tokenizer, base)
            start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            for task, stream in streams.items():
                network.load_state_dict(start)
                _train(network, stream, FINE_TUNING, task)
                _save(network, tokenizer, models[task])
    args = {"window": WINDOW, "max_tokens": 12_800}
    return study("lm4", base, models, data, tasks={"evaluator": "perplexity", "metric": "perplexity", "args": args})


def _windows(tokenizer: Any, name: str) -> torch.Tensor:
    """Training text as windows of tokens, [w, 129]."""
    texts = [str(row["text"]) for row in rows("lm", name) if row["split"] == "train"]
    ids = np.concatenate([[*found, tokenizer.eos_token_id] for found in tokenizer(texts).input_ids])
    whole = len(ids) // (WINDOW + 1)
    return torch.from_numpy(ids[: whole * (WINDOW + 1)].reshape(whole, WINDOW + 1))


def _train(network: torch.nn.Module, windows: torch.Tensor, training: Training, label: str) -> None:
    network.train()

    def loss_of(members: torch.Tensor) -> torch.Tensor:
        part = windows[members]
        logits = network(part[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())

    fit_aloud(loss_of, list(network.parameters()), len(windows), training, seed=SEED, label=f"lm4 {label}")
    network.eval()


def _save(network: Any, tokenizer: Any, folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        network.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
