"""Splits of the suites' data: validation out of train, test as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.suites import __main__ as command
from benchmarks.suites.data import carve, data_folder, images, rows, write_images, write_rows
from tests.benchmarks.conftest import write_pictures, write_texts


def test_without_data_one_line_says_so_and_nothing_is_done(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGECORE_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr("sys.argv", ["suites", "run"])
    assert data_folder() is None
    command.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert "skipped" in printed[0]
    assert "MERGECORE_DATA" in printed[0]
    assert not home.exists()


@pytest.mark.parametrize("words", [[], ["walk"], ["run", "vision9"]])
def test_wrong_words_are_answered_with_the_usage(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["suites", *words])
    with pytest.raises(SystemExit, match=r"Usage: .* build\|run .*vision8"):
        command.main()


def test_carve_keeps_the_classes_proportions() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    train, validation = carve(labels)
    assert sorted([*train, *validation]) == list(range(160))
    assert np.bincount(labels[validation]).tolist() == [20, 10, 2]
    assert np.array_equal(carve(labels)[1], validation)


def test_carve_of_a_class_with_one_member() -> None:
    train, validation = carve(np.array([0] * 9 + [1]))
    assert (len(train), len(validation)) == (8, 2)


def test_grey_pictures_are_padded_and_repeated(synthetic: Path) -> None:
    write_pictures(synthetic, "grey", shape=(28, 28), classes=3, seed=0)
    found = images("grey")
    with np.load(synthetic / "vision" / "grey" / "grey.npz") as archive:
        original, labels = archive["x_test"], archive["y_test"]
    assert found["x_test"].shape == (24, 32, 32, 3)
    assert found["x_test"].dtype == np.uint8
    for channel in range(3):
        assert np.array_equal(found["x_test"][:, 2:30, 2:30, channel], original)
    assert found["x_test"].astype(int).sum() == 3 * original.astype(int).sum()
    assert np.array_equal(found["y_test"], labels)


def test_pictures_of_train_are_in_train_or_in_validation(synthetic: Path, tmp_path: Path) -> None:
    write_pictures(synthetic, "colour", shape=(32, 32, 3), classes=3, seed=1)
    with np.load(synthetic / "vision" / "colour" / "colour.npz") as archive:
        original = {x.tobytes(): int(y) for x, y in zip(archive["x_train"], archive["y_train"], strict=True)}
    with np.load(write_images("colour", tmp_path / "written")) as archive:
        found = {name: archive[name] for name in archive.files}
    assert (len(found["x_train"]), len(found["x_validation"]), len(found["x_test"])) == (48, 12, 24)
    both: dict[bytes, int] = {}
    for split in ("train", "validation"):
        both |= {x.tobytes(): int(y) for x, y in zip(found[f"x_{split}"], found[f"y_{split}"], strict=True)}
    assert both == original


def test_texts_of_test_stay_as_they_are(synthetic: Path, tmp_path: Path) -> None:
    write_texts(synthetic, "text", "colours", classes=2, seed=0)
    found = rows("text", "colours")
    assert [row["split"] for row in found].count("validation") == 8
    assert [row["split"] for row in found].count("train") == 32
    assert [row["split"] for row in found[40:]] == ["test"] * 12
    written = write_rows("text", "colours", tmp_path / "written").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in written] == found
    fewer = write_rows("text", "colours", tmp_path / "fewer", test=4).read_text("utf-8").splitlines()
    assert [json.loads(line) for line in fewer[:40]] == found[:40]
    assert sorted(json.loads(line)["label"] for line in fewer[40:]) == [0, 0, 1, 1]
