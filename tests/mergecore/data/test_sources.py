"""Every kind of source gives the same rows; what cannot be used is named in one sentence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset

from mergecore.config import DatasetConfig
from mergecore.data import columns
from mergecore.data.sources import find_source
from mergecore.errors import InputError
from tests.mergecore.data.conftest import dataset, picture

ROWS = {
    "train": {"sentence": ["one", "two, three", 'four "five"'], "label": [0, 1, 1]},
    "test": {"sentence": ["six", "seven"], "label": [1, 0]},
}
NAMES = ["bad", "good"]
FEATURES = Features({"sentence": Value("string"), "label": ClassLabel(names=NAMES)})


def tables() -> DatasetDict:
    return DatasetDict({split: Dataset.from_dict(rows, features=FEATURES) for split, rows in ROWS.items()})


def parquet(folder: Path) -> DatasetConfig:
    tables()["test"].to_parquet(folder / "test.parquet")
    return dataset(folder / "test.parquet")


def several_parquet(folder: Path) -> DatasetConfig:
    for split, rows in tables().items():
        for shard in range(2):
            rows.shard(2, shard, contiguous=True).to_parquet(folder / f"{split}-{shard:05}-of-00002.parquet")
    return dataset(folder / "*.parquet")


def hub_folder(folder: Path) -> DatasetConfig:
    """As push_to_hub writes it, with a second configuration and names of the classes in the README alone."""
    for name in ("main", "other"):
        (folder / name).mkdir()
        plain = Features({"sentence": Value("string"), "label": Value("int64")})
        for split, rows in ROWS.items():
            content = rows if name == "main" else {"sentence": ["no"], "label": [0]}
            Dataset.from_dict(content, features=plain).to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
    card: dict[str, list[dict[str, Any]]] = {"configs": [], "dataset_info": []}
    for name in ("main", "other"):
        files = [{"split": split, "path": f"{name}/{split}-*"} for split in ROWS]
        card["configs"].append({"config_name": name, "data_files": files})
        label = {"name": "label", "dtype": {"class_label": {"names": dict(enumerate(NAMES))}}}
        features = [{"name": "sentence", "dtype": "string"}, label]
        splits = [{"name": split, "num_examples": len(rows["label"]), "num_bytes": 1} for split, rows in ROWS.items()]
        card["dataset_info"].append({"config_name": name, "features": features, "splits": splits})
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n# A data set\n")
    return dataset(folder, config="main")


def plain_folder(folder: Path) -> DatasetConfig:
    (folder / "data").mkdir()
    for split, rows in tables().items():
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return dataset(folder)


def saved(folder: Path) -> DatasetConfig:
    tables()["test"].save_to_disk(folder / "saved")
    return dataset(folder / "saved", split="train")  # what the library calls a set without a split


def saved_splits(folder: Path) -> DatasetConfig:
    tables().save_to_disk(folder / "saved")
    return dataset(folder / "saved")


def csv(folder: Path) -> DatasetConfig:
    tables()["test"].to_csv(folder / "test.csv")
    return dataset(folder / "test.csv")


def tsv(folder: Path) -> DatasetConfig:
    tables()["test"].to_csv(folder / "dev.tsv", sep="\t")
    return dataset(folder / "dev.tsv", split="validation")


def json_lines(split_column: bool) -> list[str]:
    lines = []
    for split, rows in ROWS.items():
        for sentence, label in zip(rows["sentence"], rows["label"], strict=True):
            told = {"split": split} if split_column else {}
            if split_column or split == "test":
                lines.append(json.dumps({"sentence": sentence, "label": label, **told}))
    return lines


def jsonl(folder: Path) -> DatasetConfig:
    (folder / "my.test.jsonl").write_text("\n".join(json_lines(False)))
    return dataset(folder / "my.test.jsonl")


def jsonl_gz_with_splits(folder: Path) -> DatasetConfig:
    with gzip.open(folder / "all.jsonl.gz", "wt") as handle:
        handle.write("\n".join(json_lines(True)))
    (folder / "classes.json").write_text(json.dumps(NAMES))
    return dataset(folder / "all.jsonl.gz")


def folder_of_jsonl_gz(folder: Path) -> DatasetConfig:
    jsonl_gz_with_splits(folder)
    (folder / "SOURCE.md").write_text("# Where it is from")
    return dataset(folder)


MAKERS: list[Callable[[Path], DatasetConfig]] = [
    *(parquet, several_parquet, hub_folder, plain_folder, saved, saved_splits),
    *(csv, tsv, jsonl, jsonl_gz_with_splits, folder_of_jsonl_gz),
]
UNNAMED = (csv, tsv, jsonl)
"""Formats that keep no names of classes."""


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_every_kind_gives_the_same_rows(tmp_path: Path, maker: Callable[[Path], DatasetConfig]) -> None:
    config = maker(tmp_path)
    table = find_source(config, tmp_path / "home").open(config.split, tmp_path / "scratch")
    assert columns.text_columns(table.rows, config, pairs=True) == ("sentence",)
    assert table.rows["sentence"][:] == ROWS["test"]["sentence"]
    y_n, names = columns.labels(table, config)
    assert y_n.tolist() == ROWS["test"]["label"]
    assert names == (None if maker in UNNAMED else NAMES)


def test_of_a_repository_only_the_wanted_split_is_read(tmp_path: Path) -> None:
    config = hub_folder(tmp_path)
    (tmp_path / "main" / "train-00000-of-00001.parquet").write_bytes(b"damaged")
    table = find_source(config, tmp_path / "home").open("test", tmp_path / "scratch")
    assert table.rows["sentence"][:] == ROWS["test"]["sentence"]
    with pytest.raises(InputError, match="cannot be read"):
        table.every_split()


def test_class_folders_as_the_library_reads_them(class_folders: Path, tmp_path: Path) -> None:
    (class_folders / "test" / "test tube").rename(class_folders / "test" / "cat")  # the library takes "test" twice
    config = dataset(class_folders)
    table = find_source(config, tmp_path / "home").open("test", tmp_path)
    twin = load_dataset("imagefolder", data_dir=str(class_folders), cache_dir=str(tmp_path))["test"]
    assert columns.image_column(table.rows, config) == "image"
    y_n, names = columns.labels(table, config)
    assert names == twin.features["label"].names == ["ant", "bee", "cat"]
    assert y_n.tolist() == twin["label"][:]
    assert [image.tobytes() for image in table.rows["image"]] == [image.tobytes() for image in twin["image"]]


def test_class_folders_without_splits(class_folders: Path, tmp_path: Path) -> None:
    """A class that is called like a split is a class as long as others are not."""
    (class_folders / "test" / "test tube").rename(class_folders / "test" / "test")
    config = dataset(class_folders / "test", split="train")
    y_n, names = columns.labels(find_source(config, tmp_path).open("train", tmp_path), config)
    assert names == ["ant", "bee", "test"]
    assert y_n.tolist() == [0, 0, 1, 1, 2, 2]


def test_pictures_with_other_columns_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(0).save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,kind\nb.png,dog\na.png,cat\n")
    config = dataset(tmp_path, split="train", columns={"label": "kind"})
    table = find_source(config, tmp_path / "home").open("train", tmp_path / "scratch")
    y_n, names = columns.labels(table, config)
    told = dict(zip(table.rows["kind"], y_n.tolist(), strict=True))
    assert (told, names) == ({"cat": 0, "dog": 1}, ["cat", "dog"])


def test_strings_are_numbered_alike_in_every_split(tmp_path: Path) -> None:
    lines = [{"text": "a", "label": label, "split": split} for label, split in (("z", "test"), ("y", "train"))]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = dataset(tmp_path / "all.jsonl")
    table = find_source(config, tmp_path).open("test", tmp_path)
    assert columns.labels(table, config)[0].tolist() == [1]
    (tmp_path / "classes.json").write_text('["z", "y"]')
    table = find_source(config, tmp_path).open("test", tmp_path)
    assert columns.labels(table, config)[0].tolist() == [0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("idx", "sentence1", "sentence2", "label"), ("sentence1", "sentence2")),
        (("question", "sentence", "label"), ("question", "sentence")),
        (("question1", "question2", "label"), ("question1", "question2")),
        (("premise", "hypothesis", "label"), ("premise", "hypothesis")),
        (("text", "text_a", "text_b", "label"), ("text_a", "text_b")),
        (("sentence", "label"), ("sentence",)),
        (("content", "title", "label"), ("content",)),
    ],
)
def test_known_columns_of_texts(names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    rows = Dataset.from_dict({name: ["x"] for name in names})
    assert columns.text_columns(rows, dataset("d"), pairs=True) == expected


def test_stated_columns_come_first() -> None:
    rows = Dataset.from_dict({"text": ["x"], "title": ["y"], "body": ["z"]})
    stated = dataset("d", columns={"text": "title", "text_pair": "body"})
    assert columns.text_columns(rows, stated, pairs=True) == ("title", "body")
    assert columns.text_columns(rows, stated, pairs=False) == ("title",)
    assert columns.text_columns(rows, dataset("d", columns={"text": "body"}), pairs=True) == ("body",)


def test_an_image_column_of_any_name() -> None:
    rows = Dataset.from_dict({"scan": [picture(0)], "y": [0]}, features=Features({"scan": Image(), "y": Value("int8")}))
    assert columns.image_column(rows, dataset("d")) == "scan"


FAULTS: dict[str, tuple[dict[str, list[Any]], dict[str, Any], str]] = {
    "no text": ({"words": ["a"], "label": [0]}, {}, "No column of .* the texts: it has words, label. Name one"),
    "no label": ({"text": ["a"], "kind": [0]}, {}, "No column of .* the labels: it has text, kind. Name one"),
    "stated": ({"text": ["a"], "label": [0]}, {"columns": {"label": "kind"}}, "has no column 'kind'. It has: text, la"),
    "hidden": ({"text": ["a"], "label": [-1]}, {}, "hides the labels of the split 'test'.* take another split"),
    "real": ({"text": ["a"], "label": [0.5]}, {}, "holds no classes but"),
    "lists": ({"text": ["a"], "label": [[1, 2]]}, {}, "holds no classes but"),
    "missing": ({"text": ["a", "b"], "label": [0, None]}, {}, "has rows without a label"),
    "empty": ({"text": [], "label": []}, {}, "a split of it is empty"),
    "split": ({"text": ["a"], "label": [0]}, {"split": "dev"}, "has no split 'dev'. It has: test"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path: Path, fault: str) -> None:
    rows, keys, message = FAULTS[fault]
    Dataset.from_dict(rows).to_parquet(tmp_path / "test.parquet")
    config = dataset(tmp_path / "test.parquet", **keys)

    def read() -> None:
        table = find_source(config, tmp_path / "home").open(config.split, tmp_path / "scratch")
        columns.text_columns(table.rows, config, pairs=True)
        columns.labels(table, config)

    with pytest.raises(InputError, match=message):
        read()


def test_a_label_beyond_the_names_is_named(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": 2}')
    (tmp_path / "classes.json").write_text('["x", "y"]')
    config = dataset(tmp_path / "test.jsonl")
    with pytest.raises(InputError, match="has the label 2, but there are names for 2 classes"):
        columns.labels(find_source(config, tmp_path).open("test", tmp_path), config)
    (tmp_path / "classes.json").write_text('{"x": 0}')
    with pytest.raises(InputError, match="is not a JSON list of class names"):
        find_source(config, tmp_path)


def test_unknown_kinds_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "test.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"is of no known kind. Known: .npz, .parquet"):
        find_source(dataset(tmp_path / "test.xlsx"), tmp_path).open("test", tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read: "):
        find_source(dataset(tmp_path / "test.parquet"), tmp_path).open("test", tmp_path / "scratch")
    for path in ("missing.parquet", "missing/*.csv", "./missing"):
        with pytest.raises(InputError, match="does not exist"):
            find_source(dataset(path), tmp_path)


def test_code_of_a_data_set_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    tables()["test"].to_parquet(folder / "test.parquet")
    with pytest.raises(InputError, match="scripts are no longer supported"):
        find_source(dataset(folder), tmp_path).open("test", tmp_path / "scratch")
    assert not (tmp_path / "ran").exists()


def test_a_wrong_configuration_lists_the_known_ones(tmp_path: Path) -> None:
    config = hub_folder(tmp_path).model_copy(update={"config": "mian"})
    with pytest.raises(InputError, match=r"'mian' not found. Available: \['main', 'other'\]"):
        find_source(config, tmp_path / "home").open("test", tmp_path / "scratch")
