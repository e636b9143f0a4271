"""Pictures, tables, tokenizers and a home folder that several data tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mergecore.config import DatasetConfig
from mergecore.evaluators.base import Context

CLASSES = ("ant", "bee", "test tube")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A home folder and a base checkpoint without any files yet."""
    (tmp_path / "base").mkdir()
    return Context(tmp_path / "home", base="base", base_folder=tmp_path / "base")


def dataset(path: Path | str, **keys: Any) -> DatasetConfig:
    """The config of a data set."""
    return DatasetConfig.model_validate({"path": str(path), **keys})


def picture(seed: int, *, size: tuple[int, int] = (40, 52), mode: str = "RGB") -> Image.Image:
    """A picture of random blocks of 4 x 4 pixels, so that resizing matters and JPEG would too."""
    width, height = size
    shape = (-(-height // 4), -(-width // 4), 3)
    blocks = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    pixels = blocks.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """``<split>/<class>/<i>.png`` of different sizes: 4 a class to train, 2 to test; no test tubes in "train"."""
    root = tmp_path / "pictures"
    for split, each in (("train", 4), ("test", 2)):
        for number, name in enumerate(CLASSES[: 2 if split == "train" else 3]):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(each):
                picture(100 * number + i, size=(40 + 3 * i, 52 - number)).save(folder / f"{i}.png")
    return root


def save_word_tokenizer(folder: Path, words: str, *, kind: str = "bert", **keys: Any) -> Any:
    """A tokenizer whose numbers are the positions in ``[PAD] [UNK] [CLS] [SEP] <s> <end> words…``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "<end>"]
    vocabulary = {word: number for number, word in enumerate([*special, *words.split()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind == "bert":
        inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        named["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        named = {"bos_token": "<s>", "eos_token": "<end>"}
        if kind == "llama":
            inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 4)])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", **(named | keys))
    made.save_pretrained(folder)
    return made
