"""The shipped class names and templates are complete and in label order."""

from __future__ import annotations

import pytest

from mergecore.errors import InputError
from mergecore.evaluators.prompts import prompt_table, table_names

# classes and templates as published; one class whose number is known from the data set itself
PUBLISHED = {
    "sun397": (397, 2, {0: "abbey", 92: "chicken coop outdoor", 396: "youth hostel"}),
    "stanford_cars": (
        196,
        8,
        {0: "AM General Hummer SUV 2000", 5: "Acura Integra Type R 2001", 184: "Tesla Model S Sedan 2012"},
    ),
    "resisc45": (45, 18, {0: "airplane", 44: "wetland"}),
    "eurosat": (10, 3, {2: "brushland or shrubland", 9: "lake or sea"}),
    "svhn": (10, 1, {3: "3"}),
    "gtsrb": (43, 3, {14: "stop", 17: "red circle with white horizonal stripe no entry"}),
    "mnist": (10, 1, {7: "7"}),
    "dtd": (47, 8, {0: "banded", 46: "zigzagged"}),
    "chest_xray_1": (4, 3, {0: "atelectasis", 3: "pneumothorax"}),
    "chest_xray_2": (3, 3, {2: "hernia"}),
}


def test_every_table_is_listed_here() -> None:
    assert table_names() == tuple(sorted(PUBLISHED))


@pytest.mark.parametrize("name", PUBLISHED)
def test_complete(name: str) -> None:
    classes, templates, members = PUBLISHED[name]
    table = prompt_table(name)
    assert len(table.class_names) == len(set(table.class_names)) == classes
    assert len(table.templates) == len(set(table.templates)) == templates
    assert all(template.count("{}") == 1 and template.count("{") == 1 for template in table.templates)
    assert {number: table.class_names[number] for number in members} == members


@pytest.mark.parametrize("name", ["sun397", "resisc45", "dtd"])
def test_labels_that_are_alphabetical(name: str) -> None:
    names = [text.replace(" ", "_") for text in prompt_table(name).class_names]
    assert names == sorted(names)


@pytest.mark.parametrize("name", ["tanganke/stanford_cars", "stanford-cars", "Cars"])
def test_names_of_a_table(name: str) -> None:
    assert prompt_table(name) is prompt_table(name)
    assert prompt_table(name) == prompt_table("stanford_cars")


def test_unknown_table_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'tanganke/sun379'.*Did you mean 'sun397'\?"):
        prompt_table("tanganke/sun379")
