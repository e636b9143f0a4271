"""Which tensor of a fine-tuned model belongs to which of the base, and what is no part of the merge.

Fine-tuned checkpoints rarely hold exactly the base's names. The rules, each tested:

* **Names**: a prefix that one side has and the other has not (``transformer.h.0`` and ``h.0``, ``module.``) is no
  difference, nor are the old names ``gamma`` and ``beta`` of layer norms.
* **Heads**: layers that end a network (`HEAD_PARTS`) and are absent from the base, or differ in shape or in their
  classes' names between checkpoints, are kept apart: each task is measured with one model's head. ``merge.heads`` names
  others, or says "merge" to allow none.
* **Whole parts** that a model lacks (the text tower of a saved vision tower) are the base's. A single missing tensor is
  an error.
* **Buffers** that libraries save or not (`OPTIONAL_BUFFERS`) may be missing or extra.
* **Tied tensors**: where the base stores a copy and the model does not, or the other way round, the copy follows its
  original.
* **Vocabularies** of different size are an error, or with ``merge.vocabulary: common`` merged in their common rows;
  further rows are the base's.
* **Adapters** change the base by low-rank products, which stay products.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch

from mergecore.checkpoints.adapters import read_adapter
from mergecore.checkpoints.checkpoint import Checkpoint, LowRankUpdate, TensorInfo
from mergecore.checkpoints.composed import Place, compose
from mergecore.errors import InputError, listed

Heads = Literal["auto", "merge"] | Sequence[str]

HEAD_PARTS = {
    "classifier",
    "classification_head",
    "pre_classifier",
    "score",
    "head",
    "heads",
    "fc",
    "lm_head",
    "cls",
    "qa_outputs",
    "pooler",
    "linear",
    "logits",
}
OPTIONAL_BUFFERS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|num_batches_tracked|attn\.bias|attn\.masked_bias|attn_mask)$"
)
VOCABULARY = re.compile(r"(^|\.)(\w*emb\w*|wte|shared|lm_head|decoder|token_embedding)\.(weight|bias)$")
LEGACY = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))


@dataclass(frozen=True)
class Head:
    """What one checkpoint keeps for itself, and how its network names the shared body.

    Attributes:
        checkpoint: the head's tensors, under the names of that network.
        body: name in that network to name in the base.
        folder: folder with that network's config, if there is one.
        classes: number of classes, where that config describes a network without this head: an adapter's.
    """

    checkpoint: Checkpoint
    body: Mapping[str, str]
    folder: Path | None
    classes: int | None = None


@dataclass(frozen=True)
class Alignment:
    """Checkpoints that fit tensor by tensor, and what was set aside.

    Attributes:
        base: the base's tensors that take part in the merge.
        models: name to the same tensors of each model, under the base's names.
        heads: model name to its head; empty when every tensor is merged.
        notes: what a user should know of the rules that were applied.
    """

    base: Checkpoint
    models: dict[str, Checkpoint]
    heads: dict[str, Head]
    notes: tuple[str, ...]


BASE_HEAD = "base"
"""What ``tasks[].head`` calls the head of the base."""


def align(
    base: Checkpoint,
    models: Mapping[str, Checkpoint],
    *,
    heads: Heads = "auto",
    vocabulary: Literal["same", "common"] = "same",
) -> Alignment:
    """Match every model's tensors with the base's.

    What does not fit by any rule stays in the result, for `mergecore.task_matrix.check_mergeable` to report.

    Args:
        base: the checkpoint all models were fine-tuned from.
        models: name to checkpoint.
        heads: "auto", "merge", or patterns of names (``classifier.*``) that are heads whatever their shape.
        vocabulary: what to do with embeddings of different numbers of rows.

    Raises:
        InputError: an adapter that cannot be read, or that changes what the base does not have.
    """
    if base.is_adapter:
        raise InputError(f"The base {base.source!r} is an adapter.", "Name the model it was trained on.")
    matched = {name: _match(base, model, heads, vocabulary) for name, model in models.items()}
    apart = _apart(base, models, matched, heads)
    body = [name for name in base.tensors if name not in apart]
    notes = [note for name, found in matched.items() for note in found.notes(name, models[name], base, apart)]
    aligned: dict[str, Checkpoint] = {}
    kept: dict[str, Head] = {}
    for name, found in matched.items():
        places = {key: found.places[key] for key in body if key in found.places}
        extras = {own: Place(models[name], own) for own in found.extras if own not in found.heads}
        updates = {key: update for key, update in found.updates.items() if key not in apart}
        aligned[name] = compose(models[name].source, places | extras, folder=models[name].folder, updates=updates)
        own_names = {key: own for own, key in found.names.items()}
        own_head = {own: Place(models[name], own) for own in found.heads}
        own_head |= {own_names[key]: found.places[key] for key in apart if key in own_names and key in found.places}
        if own_head:
            renamed = {own: key for own, key in found.names.items() if key not in apart}
            clean = {found.clean(own): place for own, place in own_head.items()}
            kept[name] = _head(models[name], base, clean, renamed)
    if kept:
        places = {key: Place(base, key) for key in base.tensors if key in apart}
        kept[BASE_HEAD] = Head(compose(base.source, places), {key: key for key in body}, base.folder)
    clean_base = compose(base.source, {key: Place(base, key) for key in body}, folder=base.folder)
    return Alignment(clean_base, aligned, kept, tuple(notes))


@dataclass
class _Match:
    """What matching one model with the base found.

    Attributes:
        places: base name to where the model's value is read.
        names: name in the model's network to base name.
        heads: names in the model's file that have no equal in the base and end a network.
        extras: names in the model's file that have no place.
        foreign: base names of heads whose shape is another one here.
        borrowed: base names the model lacks by a rule, so that they are the base's.
        padded: base names of which only the common rows are the model's.
        updates: low-rank products of an adapter.
        clean: name in the file to name in the model's network.
    """

    places: dict[str, Place] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    borrowed: list[str] = field(default_factory=list)
    padded: list[str] = field(default_factory=list)
    updates: dict[str, LowRankUpdate] = field(default_factory=dict)
    clean: Callable[[str], str] = lambda name: name

    def notes(self, name: str, model: Checkpoint, base: Checkpoint, apart: set[str]) -> list[str]:
        """Sentences for the user on the rules that were applied to the model ``name``."""
        found = []
        towers = sorted({key.split(".")[0] for key in self.borrowed if not OPTIONAL_BUFFERS.search(key)})
        if towers:
            found.append(f"The model {name!r} does not hold {listed(towers)}: those parts are the base's.")
        if self.padded:
            first = self.padded[0]
            found.append(
                f"The model {name!r} has {model.tensors[self.places[first].name].shape[0]} rows in {first!r}, the base "
                f"{base.tensors[first].shape[0]}: the common rows are merged."
            )
        if self.heads or self.foreign & apart:
            own = sorted({self.clean(own) for own in self.heads} | self.foreign & apart)
            found.append(f"The model {name!r} keeps a head of its own: {listed(own)}.")
        return found


class Renaming:
    """How names of one checkpoint become names of another: equal, or by one prefix less or more."""

    def __init__(self, own: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], names: Sequence[str]) -> None:
        self._base = {_modern(name): name for name in base}
        trials = [("", "")]
        trials += [(prefix, "") for prefix in _prefixes(names)] + [("", prefix) for prefix in _prefixes(base)]

        def fitting(trial: tuple[str, str]) -> int:
            matches = ((name, self._find(name, *trial)) for name in names)
            return sum(key is not None and _fits(own.get(name), base[key]) for name, key in matches)

        self._strip, self._add = max(trials, key=fitting)  # the first of the best: no prefix rather than one

    def _find(self, name: str, strip: str, add: str) -> str | None:
        name = _modern(name)
        if strip and not name.startswith(strip):
            return self._base.get(name)
        return self._base.get(add + name.removeprefix(strip)) or self._base.get(name)

    def to_base(self, name: str) -> str | None:
        """The base's name of a tensor, or None."""
        return self._find(name, self._strip, self._add)

    def to_own(self, key: str) -> str:
        """What a network with this model's names calls the base's tensor ``key``."""
        return self._strip + key.removeprefix(self._add)


def _match(base: Checkpoint, model: Checkpoint, heads: Heads, vocabulary: str) -> _Match:
    return _match_adapter(base, model, heads) if model.is_adapter else _match_whole(base, model, heads, vocabulary)


def _match_whole(base: Checkpoint, model: Checkpoint, heads: Heads, vocabulary: str) -> _Match:
    found = _Match()
    renaming = Renaming(model.tensors, base.tensors, list(model.tensors))
    for own, info in model.tensors.items():
        key = renaming.to_base(own)
        if key is None:
            if _is_head(own, heads) and not _is_copy(model, own):
                found.heads.append(own)
            elif not (_is_buffer(own, info) or _is_copy(model, own)):
                found.extras.append(own)
            continue
        found.names[own] = key
        found.places[key] = Place(model, own)
        shape = base.tensors[key].shape
        if info.shape == shape or (_is_buffer(own, info) and _is_buffer(key, base.tensors[key])):
            if info.shape != shape:
                found.places[key] = Place(base, key)
        elif VOCABULARY.search(key) and info.shape[1:] == shape[1:]:
            if vocabulary == "common":
                found.places[key] = Place(model, own, padding=(base, key))
                found.padded.append(key)
        elif _is_head(key, heads):
            found.foreign.add(key)
    if found.places:
        _fill_missing(base, found, heads)
    return found


def _match_adapter(base: Checkpoint, model: Checkpoint, heads: Heads) -> _Match:
    adapter = read_adapter(model)
    raw = dict(adapter.full)
    full = {name: model.tensors[own] for name, own in raw.items()}
    renaming = Renaming(full, base.tensors, [*adapter.pairs, *full])
    found = _Match(clean={own: name for name, own in raw.items()}.__getitem__)
    found.places = {key: Place(base, key) for key in base.tensors}
    found.names = {renaming.to_own(key): key for key in base.tensors}
    for name in adapter.pairs:
        key = renaming.to_base(name)
        if key is None:
            raise InputError(
                f"The adapter {model.source!r} changes {name!r}, which the base {base.source!r} does not have.",
                f"It was trained on {adapter.config.get('base_model_name_or_path')!r}.",
            )
        found.updates[key] = adapter.update(name, base.tensors[key])
    for name, own in raw.items():
        key = renaming.to_base(name)
        if key is not None and full[name].shape == base.tensors[key].shape:
            found.places[key] = Place(model, own)
        elif _is_head(name, heads):
            found.heads.append(own)
        else:
            found.extras.append(own)
    return found


def _fill_missing(base: Checkpoint, found: _Match, heads: Heads) -> None:
    """Give the base's value, or an equal tensor's, to what the model lacks by a rule; leave the rest missing."""
    missing = [key for key in base.tensors if key not in found.places]
    sizes: dict[str, int] = {}
    for key in base.tensors:
        sizes[_part(key)] = sizes.get(_part(key), 0) + 1
    absent = {_part(key) for key in missing} - {_part(key) for key in found.places}
    towers = {part for part in absent if sizes[part] >= TOWER}
    for key in missing:
        original = _original(base, key, found.places)
        if original is not None:
            found.places[key] = found.places[original]
        elif (
            _is_buffer(key, base.tensors[key])
            or (towers and _part(key) in absent)
            or (heads != "merge" and _is_head(key, heads))
        ):
            found.places[key] = Place(base, key)
            found.borrowed.append(key)


TOWER = 8
"""Tensors of a part of a network that a checkpoint may lack as a whole."""


def _apart(base: Checkpoint, models: Mapping[str, Checkpoint], matched: Mapping[str, _Match], heads: Heads) -> set[str]:
    """Base names of the heads that are not merged, whole modules at a time."""
    if heads == "merge":
        return set()
    if heads != "auto":
        return {key for key in base.tensors if _is_head(key, heads)}
    flagged = {key for found in matched.values() for key in found.foreign}
    if not flagged and len(set(_label_names(models))) > 1:
        flagged = {key for key in base.tensors if _is_head(key, heads) and not VOCABULARY.search(key)}
    roots = {_head_root(key) for key in flagged}
    return {key for key in base.tensors if _is_head(key, heads) and _head_root(key) in roots}


def _label_names(models: Mapping[str, Checkpoint]) -> list[tuple[str, ...]]:
    """The classes' names in each model's config; models without real names are left out."""
    found = []
    for model in models.values():
        labels = _read_json(model.folder / "config.json").get("id2label") if model.folder else None
        if isinstance(labels, dict) and not all(str(name).startswith("LABEL_") for name in labels.values()):
            found.append(tuple(str(labels[key]) for key in sorted(labels, key=lambda key: (len(key), key))))
    return found


def _head(model: Checkpoint, base: Checkpoint, places: Mapping[str, Place], body: Mapping[str, str]) -> Head:
    tensors = compose(model.source, places)
    if model.folder is not None and (model.folder / "config.json").is_file():
        return Head(tensors, body, model.folder)
    last = [info.shape[0] for name, info in tensors.tensors.items() if len(info.shape) == 2 and is_head_name(name)]
    return Head(tensors, body, base.folder, last[-1] if model.is_adapter and last else None)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_head(name: str, heads: Heads) -> bool:
    if heads == "merge":
        return False
    if heads != "auto":
        return any(fnmatchcase(name, pattern) for pattern in heads)
    return is_head_name(name)


def is_head_name(name: str) -> bool:
    """Whether a tensor's name says that it ends a network."""
    return _head_root(name) != ""


def _head_root(name: str) -> str:
    """The path of the head that a tensor belongs to; empty inside a stack of layers and elsewhere."""
    parts = name.split(".")
    for depth, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ""
        if part in HEAD_PARTS:
            return ".".join(parts[: depth + 1])
    return ""


def _is_buffer(name: str, info: TensorInfo) -> bool:
    if name.endswith("attn.bias") and len(info.shape) < 4:
        return False  # GPT-2's causal mask has that name, and so may a true bias
    return OPTIONAL_BUFFERS.search(name) is not None


def _is_copy(checkpoint: Checkpoint, name: str) -> bool:
    """Whether an output embedding is stored beside the input embedding it is tied to."""
    return VOCABULARY.search(name) is not None and _original(checkpoint, name, checkpoint.tensors) is not None


def _original(checkpoint: Checkpoint, name: str, among: Mapping[str, object]) -> str | None:
    """Another embedding of ``checkpoint`` with the same content, if its name is in ``among``."""
    if not VOCABULARY.search(name):
        return None
    info = checkpoint.tensors[name]
    for other, known in checkpoint.tensors.items():
        alike = other != name and other in among and known == info and VOCABULARY.search(other)
        if alike and torch.equal(checkpoint.read(other), checkpoint.read(name)):
            return other
    return None


def _fits(own: TensorInfo | None, base: TensorInfo) -> bool:
    return own is None or own.shape == base.shape


def _modern(name: str) -> str:
    for pattern, replacement in LEGACY:
        name = pattern.sub(replacement, name)
    return name


def _prefixes(names: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Leading components, one or two of them, in order of appearance, each with its dot."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for depth in (1, 2):
            if len(parts) > depth:
                found.setdefault(".".join(parts[:depth]) + ".")
    return list(found)


def _part(key: str) -> str:
    return key.split(".", 1)[0]
