"""What a comparison can name, and how a study says it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mergecore.comparison.config import CompareConfig, MethodConfig
from mergecore.comparison.methods import counts_of, preferences_of, scale_of
from mergecore.comparison.names import KINDS, kind_of, method_names
from mergecore.config import StudyConfig
from mergecore.config_file import parse_config
from mergecore.contenders import CONTENDERS
from mergecore.errors import InputError
from mergecore.merging import MERGES
from mergecore.search import SEARCHES
from mergecore.transforms import TRANSFORMS


def config(models: str = "abc", tasks: str = "abc", **changes: Any) -> dict[str, Any]:
    return {
        "base": "base",
        "models": [{"name": name, "source": name} for name in models],
        "tasks": [{"name": name, "dataset": {"path": "data.npz"}} for name in tasks],
        **changes,
    }


def study(**changes: Any) -> StudyConfig:
    return parse_config(config(**changes))


def test_every_registered_plug_in_is_a_method_and_no_name_means_two_things() -> None:
    names = [name for registry in (SEARCHES, CONTENDERS, TRANSFORMS, MERGES) for name in registry if name != "none"]
    assert method_names() == names
    assert len(set(names)) == len(names)
    assert {kind for name in names if (kind := kind_of(name))} == set(KINDS)


def test_the_default_comparison_needs_no_gradients() -> None:
    for method in CompareConfig().methods:
        if kind_of(method.method) == "merge":
            assert not MERGES.get(method.method).needs_data


def test_names_and_mappings() -> None:
    found = CompareConfig(methods=["map", {"method": "map", "transform": "ties"}, {"method": "ties", "label": "TIES!"}])
    assert [method.label for method in found.methods] == ["map", "map + ties", "TIES!"]


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ({"methods": ["mapp"]}, "Unknown method 'mapp'. Did you mean 'map'?"),
        ({"methods": ["none"]}, "Unknown method 'none'"),
        ({"methods": []}, "name at least one method"),
        ({"methods": "map"}, "compare.methods"),
        ({"methods": ["ties", "ties"]}, "two methods are called 'ties'; give one of them another 'label'"),
        ({"methods": [{"method": "ties", "transform": "dare"}]}, "'ties' takes no transform, it is one"),
        ({"methods": [{"method": "iso_c", "transform": "dare"}]}, "'iso_c' takes no transform, it is one"),
        ({"methods": [{"method": "map", "transform": "tie"}]}, "unknown transform 'tie'. Did you mean 'ties'?"),
        ({"methods": [{"method": "ties", "options": {"kep": 1}}]}, "The method 'ties': options.kep"),
        (
            {"methods": [{"method": "map", "transform": "ties", "options": {"keep": 2}}]},
            "The method 'map': options.keep",
        ),
        ({"methods": [{"method": "soup", "label": "../x"}]}, "looks like a path"),
        ({"metods": []}, "unknown key 'compare.metods'. Did you mean 'methods'?"),
        ({"methods": [{"method": "ties", "optoins": {}}]}, "Did you mean 'options'?"),
        ({"counts": [1]}, "compare.counts"),
        ({"preferences": 0}, "compare.preferences"),
        ({"methods": ["soup"], "references": [{"name": "soup", "source": "x"}]}, "two methods are called 'soup'"),
    ],
)
def test_faults_are_one_sentence(compare: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        study(compare=compare)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_entrants_are_those_for_the_number_of_models() -> None:
    methods = ["soup", MethodConfig(method="map", models=[2, 4])]
    references = [{"source": f"mtl{n}", "models": [n]} for n in (2, 3)]
    found = CompareConfig.model_validate({"methods": methods, "references": references})
    assert [getattr(one, "label", "") or one.source for one in found.entrants(2)] == ["soup", "map", "mtl2"]  # type: ignore[union-attr]
    assert [getattr(one, "label", "") or one.source for one in found.entrants(3)] == ["soup", "mtl3"]  # type: ignore[union-attr]


class TestFirst:
    def test_tasks_follow_their_models(self) -> None:
        found = study(tasks="cba", search={"method": "map", "samples": 7}).first(2)
        assert [model.name for model in found.models] == ["a", "b"]
        assert [task.name for task in found.tasks] == ["b", "a"]
        assert found.search.samples is None  # type: ignore[attr-defined]
        assert found.owners == (1, 0)

    def test_all_is_the_study_itself(self) -> None:
        whole = study(search={"method": "map", "samples": 7})
        assert whole.first(3) is whole

    def test_a_box_for_each_model_is_cut(self) -> None:
        found = study(search={"box": [[0, 1], [0, 2], [0, 3]]}).first(2)
        assert found.search.box == [(0.0, 1.0), (0.0, 2.0)]

    def test_a_head_makes_a_task_the_models(self) -> None:
        tasks = [{"name": n, "dataset": {"path": "x"}, "head": h} for n, h in (("x", "b"), ("a", None), ("c", "c"))]
        assert parse_config({**config(), "tasks": tasks}).owners == (1, 0, 2)

    @pytest.mark.parametrize(("count", "message"), [(4, "has 3 models"), (1, "has 3 models")])
    def test_too_many_or_too_few(self, count: int, message: str) -> None:
        with pytest.raises(InputError, match=message):
            study().first(count)

    def test_a_model_without_a_task(self) -> None:
        with pytest.raises(InputError, match="No task belongs to the model 'b'"):
            study(tasks="ac").first(2)


def test_counts_are_from_two_to_all_where_tasks_belong_to_models() -> None:
    assert counts_of(study()) == [2, 3]
    assert counts_of(study(tasks="abx")) == [3]
    assert counts_of(study(compare={"counts": [3, 2, 3]})) == [2, 3]


def test_preferences_start_with_the_equal_one_and_repeat() -> None:
    one, two = (preferences_of(study(compare={"preferences": 5, "seed": 3})) for _ in range(2))
    assert one.shape == (6, 3)
    assert one[0].tolist() == [1 / 3] * 3
    np.testing.assert_allclose(one.sum(axis=1), 1)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, preferences_of(study(compare={"preferences": 5, "seed": 4})))


def test_metrics_are_scaled_only_where_they_differ() -> None:
    assert scale_of(study()) == "none"
    mixed = config()
    mixed["tasks"][0]["metric"] = "cross_entropy"
    assert scale_of(parse_config(mixed)) == "range"
