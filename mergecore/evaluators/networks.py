"""What the files beside a checkpoint say of the network that a task is measured on, before it is built."""

from __future__ import annotations

import json
from typing import Any

from mergecore.data.tokenizers import POSITIONS
from mergecore.errors import InputError
from mergecore.evaluators.base import Context


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


def require_language_model(context: Context, task: str) -> None:
    """Raise ``InputError`` when the network cannot predict the next token."""
    name = network_class(context)
    endings = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    if name is not None and not name.endswith(endings):
        raise InputError(
            f"The task {task!r} needs a language model that predicts the next token, but {context.base!r} is a {name}."
        )
