"""Networks of the transformers library, as a folder's config.json describes them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mergecore.architectures.base import Architecture
from mergecore.errors import InputError

FORMALITIES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "_commit_hash")
"""Config entries that change no output."""


class TransformersModel(Architecture):
    """The class that ``architectures`` names; code of the repository itself is never run.

    With ``classes``, the sequence classifier of the config's model type, as an adapter with a head was trained on.
    """

    def __init__(self, name: str, folder: Path | None, source: str, *, classes: int | None = None) -> None:
        import transformers

        config = folder / "config.json" if folder is not None else None
        if config is None or not config.is_file():
            raise InputError(f"{source!r} has no config.json, so transformers cannot build its network.")
        assert folder is not None
        try:
            self._content: dict[str, Any] = json.loads(config.read_text("utf-8"))
            names = [name] if name else self._content.get("architectures") or []
        except (ValueError, AttributeError):
            raise InputError(f"{str(config)!r} is not readable JSON.") from None
        if classes is not None:
            names = [_classifier_of(self._content.get("model_type", ""), source)]
        if len(names) != 1 or not isinstance(names[0], str) or not names[0].isidentifier():
            raise InputError(f"{str(config)!r} does not name one architecture.")
        if not hasattr(transformers, names[0]):
            raise InputError(f"The architecture {names[0]!r} of {source!r} is not part of the installed transformers.")
        self.title = names[0]
        self._folder, self._classes, self._source = folder, classes, source

    @property
    def facts(self) -> Any:
        """Class and config without formalities."""
        content = {key: value for key, value in self._content.items() if key not in FORMALITIES}
        return [self.title, self._classes, content]

    def build(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, dict[str, str] | None]:
        """Load a probe through the library's own loader, which renames tensors between file and network.

        In the probe every tensor is filled with its number, so the numbers in the network say where each went.
        """
        import transformers

        cls = getattr(transformers, self.title)
        names = [name for name, tensor in weights.items() if tensor.dtype.is_floating_point]
        probe = {name: torch.full((), float(i + 1)).expand(weights[name].shape) for i, name in enumerate(names)}
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(self._folder, local_files_only=True)
            if self._classes is not None:
                config.num_labels = self._classes
            module = cls.from_pretrained(None, config=config, state_dict=probe, dtype=torch.float32)
        found = {}
        for name, tensor in module.state_dict().items():
            if not tensor.dtype.is_floating_point or not tensor.numel():
                found[name] = name if name in weights else names[0]
                continue
            first = float(tensor.reshape(-1)[0])
            if first in range(1, len(names) + 1) and not bool((tensor != first).any()):
                found[name] = names[int(first) - 1]
        return module, found


def _classifier_of(model_type: str, source: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    if model_type not in CLASSIFIERS:
        raise InputError(f"transformers has no sequence classifier for the model type {model_type!r} of {source!r}.")
    return str(CLASSIFIERS[model_type])


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and notices of transformers off the terminal while loading; errors still raise."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
