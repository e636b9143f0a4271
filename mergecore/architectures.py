"""Networks for checkpoints: build one from its folder and let its parameters be views of a merged buffer."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from mergecore.errors import InputError


def architecture(folder: Path | None, source: str) -> str:
    """The transformers class that the folder's config.json names.

    Raises:
        InputError: there is no config, it names no architecture, or one that transformers does not ship (code of the
            repository itself is never run).
    """
    config = folder / "config.json" if folder is not None else None
    if config is None or not config.is_file():
        raise InputError(
            f"The base {source!r} has no config.json, so no network can be built from it.",
            "Name a model folder saved with save_pretrained, or measure with the 'python' evaluator.",
        )
    try:
        names = json.loads(config.read_text()).get("architectures") or []
    except (ValueError, AttributeError):
        raise InputError(f"{str(config)!r} is not readable JSON.") from None
    if len(names) != 1 or not isinstance(names[0], str) or not names[0].isidentifier():
        raise InputError(f"{str(config)!r} does not name one architecture.")
    import transformers

    if not hasattr(transformers, names[0]):
        raise InputError(f"The architecture {names[0]!r} of {source!r} is not part of the installed transformers.")
    return names[0]


def build_module(folder: Path | None, weights: Mapping[str, torch.Tensor], *, source: str) -> torch.nn.Module:
    """A network in evaluation mode whose parameters and buffers are the tensors in ``weights``, without a copy.

    transformers renames tensors between file and network. Which is which is found by loading a probe through its own
    loader: a state dict in which every tensor is filled with its number.

    Args:
        folder: model folder with config.json.
        weights: state dict of float32 views, named as in the file; writing to them changes the network.
        source: what the user wrote, for messages.

    Raises:
        InputError: the checkpoint does not fill the network, holds more than it uses, or a tensor of the network is
            assembled from several.
    """
    import transformers

    cls = getattr(transformers, architecture(folder, source))
    assert folder is not None  # or there would be no architecture
    names = [name for name, tensor in weights.items() if tensor.dtype.is_floating_point]
    probe = {name: torch.full((), float(i + 1)).expand(weights[name].shape) for i, name in enumerate(names)}
    with quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        module = cls.from_pretrained(None, config=config, state_dict=probe, dtype=torch.float32)
    module.eval().requires_grad_(False)
    unused = set(names)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not tensor.dtype.is_floating_point or not tensor.numel():
            continue
        first = float(tensor.reshape(-1)[0])
        if first not in range(1, len(names) + 1) or bool((tensor != first).any()):
            raise InputError(f"The checkpoint {source!r} does not fill {name!r} of {cls.__name__} from one tensor.")
        tensor.data = weights[names[int(first) - 1]]
        unused.discard(names[int(first) - 1])
    if unused:
        raise InputError(f"{cls.__name__} has no place for {min(unused)!r} of the checkpoint {source!r}.")
    return module


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
