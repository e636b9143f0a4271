"""Do a data set and a network number their classes alike? Numbers in another order measure nonsense, silently."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mergecore.errors import InputError

LabelMap = Literal["by_name", "by_number"] | dict[int | str, int | str]
"""Type of ``args.label_map``: a class of the data set to one of the network, by name or number; or how to find it."""

NAMELESS = re.compile(r"(LABEL_)?\d+")


def network_class_names(config: Mapping[str, Any]) -> list[str]:
    """The network's classes as its config.json names them, in order; transformers leaves out the default of two."""
    stated = config.get("id2label")
    if not isinstance(stated, dict):
        return ["LABEL_0", "LABEL_1"]
    return [str(stated[number]) for number in sorted(stated, key=int)]


def network_labels(
    labels_n: np.ndarray,
    names: Sequence[str] | None,
    network: Sequence[str],
    *,
    label_map: LabelMap | None,
    task: str,
) -> np.ndarray:
    """The labels as the network numbers its classes.

    Args:
        labels_n: [n] as the data set numbers them.
        names: the data set's classes, in order; None when they have no names.
        network: the network's classes, in order.
        label_map: what the user says of it.
        task: the task's name, for messages.

    Returns:
        [n] int64 class numbers.

    Raises:
        InputError: a label that the network does not have, or both name their classes, but in another order.
    """
    known = list(names or ())
    known += [str(label) for label in range(len(known), int(labels_n.max()) + 1)]
    if label_map is None:
        _check_order(known, network, task)
    numbers = _numbers(known, network, label_map, task)
    found: np.ndarray = np.array([numbers.get(label, -1) for label in range(len(known))], dtype=np.int64)[labels_n]
    if found.min() < 0:
        label = known[int(labels_n[found < 0][0])]
        raise InputError(f"The task {task!r}: args.label_map does not say which class of the network {label!r} is.")
    if found.max() >= len(network):
        raise InputError(
            f"The task {task!r} has the label {int(found.max())}, but the network tells {len(network)} classes apart."
        )
    return found


def class_titles(
    names: Sequence[str] | None, network: Sequence[str] | None, *, label_map: LabelMap | None
) -> tuple[str, ...] | None:
    """What answers call the network's classes, in its order: its own names, or the data set's where it has none.

    Args:
        names: the data set's classes, in order; None when they have no names.
        network: the network's classes, in order; None when nothing is known of them.
        label_map: as for `network_labels`.
    """
    if network is None or names is None:
        return tuple(network or names or ()) or None
    alike = label_map in (None, "by_number") and len(names) <= len(network)
    if alike and all(map(NAMELESS.fullmatch, network)):
        return (*names, *network[len(names) :])
    return tuple(network)


def _numbers(known: Sequence[str], network: Sequence[str], label_map: LabelMap | None, task: str) -> dict[int, int]:
    """Number in the data set to number in the network."""
    if label_map is None or label_map == "by_number":
        return {label: label for label in range(len(known))}
    if label_map == "by_name":
        places = {_plain(name): number for number, name in enumerate(network)}
        missing = [name for name in known if _plain(name) not in places]
        if missing:
            raise InputError(
                f"The task {task!r}: no class of the network is called {missing[0]!r}.",
                f"It has: {', '.join(network)}.",
            )
        return {label: places[_plain(name)] for label, name in enumerate(known)}
    return {_place(own, known, task): _place(other, network, task) for own, other in label_map.items()}


def _place(label: int | str, names: Sequence[str], task: str) -> int:
    """Number of a class that the user named, or numbered."""
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    plain = [_plain(name) for name in names]
    if isinstance(label, str) and _plain(label) in plain:
        return plain.index(_plain(label))
    raise InputError(f"The task {task!r}: args.label_map: there is no class {label!r}.", f"Known: {', '.join(names)}.")


def _check_order(known: Sequence[str], network: Sequence[str], task: str) -> None:
    """Raise when a name stands at another place on the other side; names that only one side has say nothing."""
    if all(map(NAMELESS.fullmatch, known)) or all(map(NAMELESS.fullmatch, network)):
        return
    places = {_plain(name): number for number, name in enumerate(network)}
    for label, name in enumerate(known):
        if places.get(_plain(name), label) != label:
            raise InputError(
                f"The task {task!r}: {name!r} is class {label} of the data set, "
                f"but class {places[_plain(name)]} of the network.",
                "Say which is meant: 'args: {label_map: by_name}', 'by_number', or a mapping of classes.",
            )


def _plain(name: str) -> str:
    """A name without case, blanks, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", name).casefold()
