"""Everything that a comparison can name: search methods, rules for coefficients, transforms, merges.

A new one of any kind is known here as soon as it is registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mergecore.contenders import CONTENDERS
from mergecore.errors import InputError
from mergecore.merging import MERGES
from mergecore.registry import Registry, did_you_mean
from mergecore.search import SEARCHES
from mergecore.transforms import TRANSFORMS

Kind = Literal["search", "rule", "transform", "merge"]
KINDS: dict[Kind, Registry] = {"search": SEARCHES, "rule": CONTENDERS, "transform": TRANSFORMS, "merge": MERGES}

COMPARED: tuple[dict[str, Any], ...] = (
    {"method": "map"},
    {"method": "map", "transform": "ties"},
    {"method": "map", "transform": "dare"},
    {"method": "map", "transform": "tsv_m"},
    *({"method": name} for name in ("base", "soup", "task_arithmetic", "preference_weights", "slerp")),
    *({"method": name} for name in ("ties", "dare", "dare_ties", "breadcrumbs", "magnitude", "tsv_m")),
    *({"method": name} for name in ("iso_c", "iso_cts", "single")),
)
"""What is compared when a study does not say: MAP and what needs neither gradients nor further training."""


def method_names() -> list[str]:
    """Every name, in the order of the kinds."""
    return [name for kind, registry in KINDS.items() for name in registry if (kind, name) != ("transform", "none")]


def kind_of(name: str) -> Kind:
    """What a method is.

    Raises:
        InputError: no such method.
    """
    for kind, registry in KINDS.items():
        if name in registry and name != "none":
            return kind
    raise InputError(f"Unknown method {name!r}.", did_you_mean(name, method_names()))


def check_options(method: str, transform: str, options: Mapping[str, Any]) -> None:
    """Raise ``InputError`` when the options are not those of the method's transform or merge."""
    from mergecore.options import read_options

    kind = kind_of(method)
    name = method if kind in ("transform", "merge") else transform
    cls = KINDS[kind].get(name) if kind in ("transform", "merge") else TRANSFORMS.get(name)
    read_options(cls.Options, options, owner=f"The method {method!r}", where="options")


def check_search(method: str, options: Mapping[str, Any]) -> None:
    """Raise ``InputError`` when the options are not those of the search method."""
    from mergecore.options import read_options

    if kind_of(method) != "search":
        raise InputError(f"The method {method!r} is no search method, so it has no search options.")
    read_options(
        SEARCHES.get(method).Options, {"method": method, **options}, owner=f"The method {method!r}", where="search"
    )


def takes_preferences(method: str) -> bool:
    """Whether a method makes its network of a preference, which takes the place of the coefficients."""
    return kind_of(method) == "search" and bool(SEARCHES.get(method).learns)
