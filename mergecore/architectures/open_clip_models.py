"""Networks of open_clip: built-in names ("ViT-B-32", "ViT-B-32/openai") and folders with open_clip_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mergecore.architectures.base import Architecture
from mergecore.errors import InputError, first_line
from mergecore.registry import did_you_mean

CONFIG = "open_clip_config.json"


class OpenClipModel(Architecture):
    """A CLIP of open_clip; ``/<tag>`` after the name says which activation its weights were trained with."""

    def __init__(self, name: str, folder: Path | None, source: str, *, classes: int | None = None) -> None:
        self._quick_gelu = False
        if name:
            import open_clip

            model, _, tag = name.partition("/")
            if open_clip.get_model_config(model) is None:
                raise InputError(f"open_clip has no model {model!r}.", did_you_mean(model, open_clip.list_models()))
            self._config: Any = open_clip.get_model_config(model)
            self._name = model
            if tag:
                self._quick_gelu = bool(pretrained_config(model, tag).get("quick_gelu"))
        else:
            config = folder / CONFIG if folder is not None else None
            if config is None or not config.is_file():
                raise InputError(f"{source!r} has no {CONFIG}.", "Say which model it is: 'architecture: open_clip:…'.")
            try:
                self._config = json.loads(config.read_text("utf-8"))["model_cfg"]
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{str(config)!r} is not readable JSON with a 'model_cfg'.") from None
            self._name = f"local-dir:{folder}"
        self.title = f"open_clip's {name or 'CLIP'}"

    @property
    def facts(self) -> Any:
        """The library's config of the model."""
        return ["open_clip", self._config, self._quick_gelu]

    def build(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, dict[str, str] | None]:
        """The CLIP as the library creates it, without loading weights."""
        import open_clip

        return open_clip.create_model(
            self._name,
            load_weights=False,
            pretrained_text=False,
            force_quick_gelu=self._quick_gelu,
        ), None


def pretrained_config(model: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of published weights; an unknown tag raises ``InputError``."""
    import open_clip

    found: dict[str, Any] = open_clip.get_pretrained_cfg(model, tag)
    if not found:
        known = open_clip.list_pretrained_tags_by_model(model)
        raise InputError(f"open_clip has no weights {tag!r} for {model!r}.", did_you_mean(tag, known))
    return found


def weights_file(rest: str, home: Path) -> Path:
    """The file of ``open_clip:<model>/<tag>``, fetched by the library into its own cache."""
    import open_clip

    model, _, tag = rest.partition("/")
    if open_clip.get_model_config(model) is None:
        raise InputError(f"open_clip has no model {model!r}.", did_you_mean(model, open_clip.list_models()))
    try:
        return Path(open_clip.download_pretrained(pretrained_config(model, tag)))
    except (OSError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"The weights 'open_clip:{rest}' could not be fetched: {reason}.") from None
