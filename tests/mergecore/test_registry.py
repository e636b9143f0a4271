"""The registry: collisions raise, unknown names suggest the nearest, every registered plug-in can be imported."""

from __future__ import annotations

import pytest

from mergecore.checkpoints.checkpoint import SOURCES
from mergecore.data import DATA_SOURCES
from mergecore.errors import InputError, MergecoreError
from mergecore.evaluators import EVALUATORS
from mergecore.registry import Registry, did_you_mean
from mergecore.search import SEARCHES
from mergecore.transforms import TRANSFORMS


def test_get_imports_on_first_use() -> None:
    registry = Registry("thing", {"join": "os.path:join"})
    import os.path

    assert registry.get("join") is os.path.join
    assert list(registry) == ["join"]
    assert "join" in registry
    assert len(registry) == 1


def test_collision_raises() -> None:
    registry = Registry("thing", {"a": "x:y"})
    with pytest.raises(MergecoreError, match="'a' is registered twice"):
        registry.add("a", "x:z")


@pytest.mark.parametrize("address", ["no.colon", "a:b:c"])
def test_bad_address_raises(address: str) -> None:
    with pytest.raises(MergecoreError, match="is not 'package"):
        Registry("thing", {"a": address})


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"Unknown search method 'mapp'\. Did you mean 'map'\?"):
        SEARCHES.get("mapp")
    assert did_you_mean("zzz", ["b", "a"]) == "Known: a, b."
    assert did_you_mean("zzz", []) == ""


@pytest.mark.parametrize("registry", [SEARCHES, EVALUATORS, TRANSFORMS, SOURCES, DATA_SOURCES], ids=lambda r: r.kind)
def test_every_entry_exists(registry: Registry) -> None:
    for name in registry:
        assert callable(registry.get(name)), name
