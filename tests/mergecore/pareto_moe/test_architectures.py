"""Routers of every architecture: gradients against a directional derivative, and the unloaded network's own loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergecore.architectures.hub_transformers import quiet_transformers
from mergecore.config_file import parse_config
from mergecore.evaluation import CandidateEvaluator
from mergecore.pareto_moe.losses import Batch, RoutedLosses
from mergecore.pareto_moe.routed_study import new_training, route
from mergecore.study import prepare
from tests.mergecore.evaluators.pico_clip import VISION, open_clips, transformers_clips
from tests.mergecore.evaluators.pico_texts import family, labelled, texts, write_rows

Made = tuple[list[str], dict[str, Any], dict[str, Any]]
"""Folders of base and models, what a task says, what the search says."""
BOTH_TOWERS = (*VISION, "token_embedding", "ln_final", "text_model")


def images(folder: Path, size: int, channels: int = 3) -> str:
    rng = np.random.default_rng(0)
    file = folder / "images.npz"
    shape = (12, channels, size, size)
    np.savez(file, x_validation=rng.normal(size=shape).astype(np.float32), y_validation=np.arange(12) % 3)
    return str(file)


def clip(maker: Callable[..., list[str]], moved: tuple[str, ...], modules: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        args = {"class_names": ["cat", "dog", "emu"]}
        task = {"evaluator": "clip_zero_shot", "dataset": {"path": images(folder, 8)}, "args": args}
        return maker(folder, moved=moved), task, {"modules": modules}

    return make


def classifier(kind: str, **changes: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        places = family(folder, kind, num_labels=3, **changes)
        task = {"evaluator": "sequence_classification", "dataset": {"path": labelled(folder / "texts.jsonl", count=12)}}
        return list(places.values()), task, {"modules": "attn+mlp"}

    return make


def language_model(folder: Path) -> Made:
    rows = [{"text": text, "split": "validation"} for text in texts(12)]
    task = {
        "evaluator": "perplexity",
        "metric": "perplexity",
        "dataset": {"path": write_rows(folder / "corpus.jsonl", rows)},
        "args": {"window": 12},
    }
    return list(family(folder, "llama-lm").values()), task, {"modules": "all"}


def residual_network(folder: Path) -> Made:
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic", "num_labels": 3}
    places = []
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        module = ResNetForImageClassification(ResNetConfig(**shape))
        for seed in range(3):
            places.append(str(folder / f"resnet{seed}"))
            for parameter in module.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            module.save_pretrained(places[-1])
    task = {"evaluator": "image_classification", "dataset": {"path": images(folder, 32)}}
    return places, task, {"modules": "block"}


CASES: dict[str, Callable[[Path], Made]] = {
    "open_clip, image encoder": clip(open_clips, VISION, "mlp"),
    "open_clip, published list": clip(open_clips, BOTH_TOWERS, "all"),
    "CLIP of transformers, image encoder": clip(transformers_clips, VISION, "attn+mlp"),
    "CLIP of transformers, published list": clip(transformers_clips, BOTH_TOWERS, "all"),
    "BERT": classifier("bert"),
    "GPT-2": classifier("gpt2"),
    "Llama": classifier("llama"),
    "Llama, perplexity": language_model,
    "ResNet": residual_network,
}


@pytest.mark.parametrize("name", list(CASES))
def test_gradients_and_unloaded_losses(name: str, tmp_path: Path, home: Path) -> None:
    places, task, search = CASES[name](tmp_path)
    task["dataset"]["split"] = "validation"
    config = parse_config(
        {
            "base": places[0],
            "models": [{"name": f"m{n}", "source": place} for n, place in enumerate(places[1:])],
            "tasks": [{"name": f"t{n}", **task} for n in range(2)],
            "search": {"method": "pwe_moe", "steps": 3, **search},
        }
    )
    study = prepare(config, home)
    options: Any = config.search
    routed = route(study, options)
    losses = RoutedLosses(routed)
    rows = np.arange(min(12, study.measured[0].examples))
    rng = np.random.default_rng(1)
    routing_GN = rng.uniform(0.1, 0.6, size=(len(routed.plan.modules), 2))
    direction_GN = rng.normal(size=routing_GN.shape)
    _, gradient_GN = losses.gradient(Batch(0, 0, 1.0, routing_GN, rows))

    def slope(step: float) -> float:
        high, low = (
            losses.gradient(Batch(0, 0, 1.0, routing_GN + sign * step * direction_GN, rows))[0] for sign in (1, -1)
        )
        return (high - low) / (2 * step)

    expected = slope(2e-3)
    assert abs(expected) > 1e-3
    assert (gradient_GN * direction_GN).sum() == pytest.approx(expected, rel=0.05, abs=2e-3)
    used = [module for module in routed.plan.modules if module in set(routed.plan.owners.values())]
    assert used

    training, file = new_training(routed, options)
    training.save(file)
    r = np.array([0.25, 0.75])
    routed_loss, _ = losses.gradient(Batch(0, 0, 1.0, training.routing(r), rows))
    (outcome,) = CandidateEvaluator(study.routed(file)).evaluate(r, [0])
    measured = outcome.metrics.get("cross_entropy", np.log(outcome.metrics.get("perplexity", np.nan)))
    assert measured == pytest.approx(routed_loss, rel=1e-5)
