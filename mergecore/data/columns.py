"""Which columns hold images, texts and labels, and what the labels are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from mergecore.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from mergecore.config import DatasetConfig
    from mergecore.data.sources import Table

IMAGES = ("image", "img", "picture", "jpg", "png", "webp", "pixel_values")
TEXTS = ("text", "sentence", "content", "review", "document", "tweet", "utterance", "question")
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
    ("text1", "text2"),
)
"""Two texts judged together, as GLUE and others call them."""

LABELS = ("label", "labels", "fine_label", "target", "class", "category", "coarse_label")


def image_column(rows: Dataset, dataset: DatasetConfig) -> str:
    """Name of the column of images."""
    if dataset.columns.image is not None:
        return _stated(dataset.columns.image, rows, dataset)
    by_kind = [name for name, feature in rows.features.items() if type(feature).__name__ == "Image"]
    return _found("image", [*IMAGES, *by_kind], rows, dataset)


def text_columns(rows: Dataset, dataset: DatasetConfig, *, pairs: bool) -> tuple[str, ...]:
    """Name of the column of texts, or names of both columns of a pair.

    Args:
        rows: the table.
        dataset: may name the columns.
        pairs: whether two texts are wanted where there are two.
    """
    stated = dataset.columns
    if stated.text is not None:
        both = (stated.text, stated.text_pair) if stated.text_pair is not None and pairs else (stated.text,)
        return tuple(_stated(name, rows, dataset) for name in both)
    if pairs:
        for pair in PAIRS:
            if set(pair) <= set(rows.column_names):
                return pair
    return (_found("text", TEXTS, rows, dataset),)


def labels(table: Table, dataset: DatasetConfig) -> tuple[np.ndarray, list[str] | None]:
    """Class numbers [n] from 0, and the classes' names where they have any.

    Whole numbers are taken as they are. Strings are numbered as the list of class names says, else in alphabetical
    order over all splits.

    Raises:
        InputError: no such column, hidden labels, or something that is no class.
    """
    rows, wanted = table.rows, dataset.columns.label
    by_kind = [name for name, feature in rows.features.items() if type(feature).__name__ == "ClassLabel"]
    name = _stated(wanted, rows, dataset) if wanted else _found("label", [*LABELS, *by_kind], rows, dataset)
    feature: Any = rows.features[name]
    where = f"The column {name!r} of {dataset.path!r}"
    values = rows[name][:]
    if None in values:
        raise InputError(f"{where} has rows without a label.")
    stated = list(getattr(feature, "names", None) or table.class_names or ())
    if all(isinstance(value, str) for value in values):
        names = stated if set(values) <= set(stated) else sorted(_every_value(table, name))
        number = {text: index for index, text in enumerate(names)}
        return np.array([number[text] for text in values], dtype=np.int64), names
    if not all(isinstance(value, (int, float)) and float(value).is_integer() for value in values):
        raise InputError(f"{where} holds no classes but {feature}.", "Name another: 'columns: {label: …}'.")
    y_n = np.array(values, dtype=np.int64)
    if y_n.min() < 0:
        raise InputError(
            f"{where} hides the labels of the split {dataset.split!r}: they are -1.",
            "Benchmarks such as GLUE do that to 'test': take another split.",
        )
    if stated and y_n.max() >= len(stated):
        raise InputError(f"{where} has the label {y_n.max()}, but there are names for {len(stated)} classes.")
    return y_n, stated or None


def _every_value(table: Table, name: str) -> set[str]:
    """The labels of all splits, so that a class has the same number in each."""
    return {text for rows in table.every_split().values() for text in rows.unique(name) if text is not None}


def _stated(name: str, rows: Dataset, dataset: DatasetConfig) -> str:
    if name not in rows.column_names:
        raise InputError(
            f"The data set {dataset.path!r} has no column {name!r}.", f"It has: {', '.join(rows.column_names)}."
        )
    return name


def _found(kind: str, known: Iterable[str], rows: Dataset, dataset: DatasetConfig) -> str:
    for name in known:
        if name in rows.column_names:
            return name
    raise InputError(
        f"No column of {dataset.path!r} is known to hold the {kind}s: it has {', '.join(rows.column_names)}.",
        f"Name one: 'columns: {{{kind}: …}}'.",
    )
