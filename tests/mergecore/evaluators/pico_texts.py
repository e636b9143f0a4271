"""Pico language models and sequence classifiers with a word-level tokenizer, and texts of its words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergecore.architectures.hub_transformers import quiet_transformers

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
WORDS = [f"w{number}" for number in range(36)]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
ROWS = len(SPECIAL) + len(WORDS)


def write_tokenizer(folder: Path, *, pairs: bool = False, pad: bool = True, side: str = "right") -> None:
    """Words split at blanks.

    Args:
        folder: where its files go.
        pairs: whether texts stand between start and end tokens and have types, as BERT's.
        pad: whether it has a padding token; GPT-2's has none.
        side: of the padding.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if pairs:
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    names = ["input_ids", *(["token_type_ids"] if pairs else []), "attention_mask"]
    special: dict[str, Any] = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    special |= {"pad_token": "<pad>"} if pad else {}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side=side, model_input_names=names, **special
    ).save_pretrained(folder)


def network(kind: str, **changes: Any) -> torch.nn.Module:
    """A pico network with random weights: "bert", "gpt2" or "llama", as classifier, or "…-lm" as language model."""
    import transformers

    family, _, language = kind.partition("-")
    changes = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": ROWS, **changes}
    if family == "gpt2":
        config: Any = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **changes)
    else:
        made = {"bert": transformers.BertConfig, "llama": transformers.LlamaConfig}[family]
        config = made(**SHAPE, max_position_embeddings=32, **changes)
    names = {"bert": "Bert", "gpt2": "GPT2", "llama": "Llama"}
    ending = "ForSequenceClassification" if not language else {"llama": "ForCausalLM"}.get(family, "LMHeadModel")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = getattr(transformers, names[family] + ending)(config).eval()
        for tensor in module.parameters():
            if tensor.ndim > 1:  # as they come, every text has nearly the same logits
                tensor.data += 0.5 * torch.randn_like(tensor)
    return module


def family(folder: Path, kind: str, *, tokenizer: dict[str, Any] | None = None, **changes: Any) -> dict[str, str]:
    """Folders of a base and two fine-tuned models with tokenizer, as the hub has them."""
    module = network(kind, **changes)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    places = {}
    for seed, name in enumerate(("base", "first", "second")):
        generator = torch.Generator().manual_seed(seed)
        moved = {
            key: tensor + 0.2 * seed * torch.randn(tensor.shape, generator=generator) for key, tensor in state.items()
        }
        module.load_state_dict(moved)
        places[name] = str(folder / name)
        with quiet_transformers():
            module.save_pretrained(places[name])
        write_tokenizer(folder / name, **{"pairs": kind == "bert", "pad": kind != "gpt2", **(tokenizer or {})})
    return places


def texts(count: int, *, longest: int = 12, seed: int = 0) -> list[str]:
    """Random sentences of 1 to ``longest`` words."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(1, longest + 1))) for _ in range(count)]


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    """A .jsonl file; returns its path."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def labelled(file: Path, *, count: int = 40, classes: int = 3, pairs: bool = False, seed: int = 0) -> str:
    """Random labelled texts, or pairs of texts, as a .jsonl file."""
    labels = np.random.default_rng(seed).integers(0, classes, count).tolist()
    first, second = texts(count, seed=seed), texts(count, longest=6, seed=seed + 1)
    rows = [
        {**({"sentence1": a, "sentence2": b} if pairs else {"text": a}), "label": label, "split": "validation"}
        for a, b, label in zip(first, second, labels, strict=True)
    ]
    return write_rows(file, rows)
