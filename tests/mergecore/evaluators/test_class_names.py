"""Class numbers of a data set in the network's order."""

from __future__ import annotations

import numpy as np
import pytest

from mergecore.errors import InputError
from mergecore.evaluators.class_names import LabelMap, network_class_names, network_labels

LABELS = np.array([0, 1, 2, 1])
NLI = ["entailment", "neutral", "contradiction"]


@pytest.mark.parametrize(
    ("names", "network", "label_map", "expected"),
    [
        (None, ["LABEL_0", "LABEL_1", "LABEL_2"], None, [0, 1, 2, 1]),
        (NLI, NLI, None, [0, 1, 2, 1]),
        (NLI, ["Entailment", "NEUTRAL", "contra-diction"], None, [0, 1, 2, 1]),
        (NLI, ["LABEL_0", "LABEL_1", "LABEL_2"], None, [0, 1, 2, 1]),
        (["a", "b", "c"], NLI, None, [0, 1, 2, 1]),
        (NLI, NLI[::-1], "by_name", [2, 1, 0, 1]),
        (NLI, NLI[::-1], "by_number", [0, 1, 2, 1]),
        (NLI, NLI[::-1], {"entailment": "entailment", 1: "neutral", "contradiction": 0}, [2, 1, 0, 1]),
        (None, ["x", "y", "z"], {0: 2, 1: 2, 2: "x"}, [2, 2, 0, 2]),
        (None, ["x", "y", "z"], {"0": "z", "1": "y", "2": "x"}, [2, 1, 0, 1]),
    ],
)
def test_labels(names: list[str] | None, network: list[str], label_map: LabelMap | None, expected: list[int]) -> None:
    found = network_labels(LABELS, names, network, label_map=label_map, task="t")
    assert found.tolist() == expected
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("names", "network", "label_map", "message"),
    [
        (NLI, NLI[::-1], None, "'entailment' is class 0 of the data set, but class 2 of the network.*label_map"),
        (NLI, ["neutral", "other", "third"], None, "'neutral' is class 1"),
        (None, ["LABEL_0", "LABEL_1"], None, "has the label 2, but the network tells 2 classes apart"),
        (["only", "two"], ["LABEL_0", "LABEL_1"], None, "has the label 2"),
        (NLI, ["entailment", "neutral", "x"], "by_name", "no class of the network is called 'contradiction'"),
        (NLI, NLI, {"entailment": 0, "neutral": 1}, "does not say which class of the network 'contradiction' is"),
        (NLI, NLI, {"entailment": 0, "neutrall": 1}, "there is no class 'neutrall'"),
        (NLI, NLI, {"entailment": 5}, "there is no class 5"),
    ],
)
def test_faults(names: list[str] | None, network: list[str], label_map: LabelMap | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        network_labels(LABELS, names, network, label_map=label_map, task="t")


def test_names_in_a_config() -> None:
    assert network_class_names({}) == ["LABEL_0", "LABEL_1"]
    assert network_class_names({"id2label": {"10": "k", "9": "j", "2": "c"}}) == ["c", "j", "k"]
