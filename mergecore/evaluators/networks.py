"""What the files beside a checkpoint say of the network that a task is measured on, before it is built."""

from __future__ import annotations

import json
from typing import Any

from mergecore.data.tokenizers import POSITIONS
from mergecore.errors import InputError
from mergecore.evaluators.base import Context

WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
"""What configs call the width of the hidden states."""

LOGITS_SHARE = 16
"""Logits over a vocabulary are the largest activation by far: they may take so many times what inputs may."""


def network_config(context: Context) -> dict[str, Any]:
    """Content of its config.json, the part about text where there are several; empty when there is none."""
    file = context.folder / "config.json" if context.folder is not None else None
    if file is None or not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError:
        raise InputError(f"{str(file)!r} is not readable JSON.") from None
    if not isinstance(content, dict):
        raise InputError(f"{str(file)!r} is not a mapping of names to values.")
    text = content.get("text_config")
    return {**content, **text} if isinstance(text, dict) else content


def network_class(context: Context) -> str | None:
    """Name of its class in transformers; None when it is of another library or not known."""
    family, _, name = context.architecture.partition(":")
    if family not in ("", "transformers"):
        return None
    names = [name] if name else network_config(context).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def context_length(context: Context) -> int | None:
    """Number of tokens it can read at once; None when its config states no limit."""
    config = network_config(context)
    return next((int(config[name]) for name in POSITIONS if config.get(name)), None)


def hidden_bytes(context: Context, tokens: int) -> int:
    """What the hidden states of so many tokens take in float32."""
    config = network_config(context)
    return tokens * 4 * next((int(config[name]) for name in WIDTHS if config.get(name)), 1024)


def language_model_bytes(context: Context, tokens: int) -> int:
    """What an example of so many tokens counts as, for the batch size of a model with logits at every token."""
    vocabulary = int(network_config(context).get("vocab_size") or 0)
    return max(hidden_bytes(context, tokens), tokens * 4 * vocabulary // LOGITS_SHARE)


def require_language_model(context: Context, task: str, *, decoder_only: bool) -> None:
    """Raise ``InputError`` when the network does not predict the next token.

    Args:
        context: names the network.
        task: the task's name, for messages.
        decoder_only: whether it must do so without an encoder.
    """
    name = network_class(context)
    predicts = name is None or name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
    if not predicts or (decoder_only and network_config(context).get("is_encoder_decoder")):
        raise InputError(
            f"The task {task!r} needs a language model that predicts the next token, but {context.base!r} is a {name}."
        )
