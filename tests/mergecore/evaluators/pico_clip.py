"""Pico CLIPs of both libraries as folders, with everything a tokenizer needs."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from safetensors.torch import save_file

from mergecore.architectures.hub_transformers import quiet_transformers

TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CHARACTERS = string.ascii_lowercase + string.digits + ".,:!\"'"
VOCABULARY = ["<|startoftext|>", *CHARACTERS, *(f"{c}</w>" for c in CHARACTERS), "<|endoftext|>"]
OPEN_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 64, "patch_size": 4},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
VISION = ("visual", "vision_model")


def transformers_clips(folder: Path, *, moved: tuple[str, ...] = VISION, positions: int = 24) -> list[str]:
    """A base and two fine-tuned folders; only tensors whose names start with ``moved`` differ."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    text = {**TOWER, "vocab_size": len(VOCABULARY), "max_position_embeddings": positions}
    ends = {"bos_token_id": 0, "eos_token_id": len(VOCABULARY) - 1, "pad_token_id": len(VOCABULARY) - 1}
    config = CLIPConfig(
        text_config={**text, **ends}, vision_config={**TOWER, "image_size": 8, "patch_size": 4}, projection_dim=8
    )
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)}, merges=[])
    places = []
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(2)
        module = CLIPModel(config)
        spread(module)
        for seed in range(3):
            places.append(str(folder / f"transformers-{seed}"))
            move(module, seed, moved)
            module.save_pretrained(places[-1])
            tokenizer.save_pretrained(places[-1])
    return places


def open_clips(folder: Path, *, moved: tuple[str, ...] = VISION) -> list[str]:
    """The same for open_clip."""
    import open_clip

    places = []
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for seed in range(3):
            place = folder / f"open_clip-{seed}"
            place.mkdir()
            places.append(str(place))
            (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))
            if seed == 0:
                module = open_clip.create_model(f"local-dir:{place}", load_weights=False)
                spread(module)
            move(module, seed, moved)
            save_file(module.state_dict(), place / "open_clip_model.safetensors")
    return places


def spread(module: torch.nn.Module) -> None:
    """Random towers send everything to nearly one point; larger weights keep images and sentences apart."""
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if tensor.ndim > 1 and "position" not in name:
                tensor.mul_(4)


def move(module: torch.nn.Module, seed: int, moved: tuple[str, ...]) -> None:
    """Nothing for seed 0, the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if seed and name.startswith(moved):
                tensor.add_(0.1 * tensor.abs().mean().add(1) * torch.randn(tensor.shape, generator=generator))
