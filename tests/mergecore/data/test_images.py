"""Images in the cache, normalised on the fly, are what the checkpoint's own library would have made of the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image

from mergecore.data.cache import decoded
from mergecore.data.images import load_images
from mergecore.errors import InputError
from mergecore.evaluators.base import Context
from tests.mergecore.data.conftest import CLASSES, dataset, picture

PICTURES = [
    *(picture(0), picture(1, size=(70, 41)), picture(2, size=(33, 64), mode="L"), picture(3, mode="P")),
    Image.merge("RGBA", [picture(4 + i, mode="L") for i in range(4)]),
]
Twin = Callable[[Any], torch.Tensor]
"""A picture to what the library feeds its network, [C, H, W]."""


def parquet(folder: Path, pictures: list[Any] | None = None) -> Path:
    """The pictures as hub repositories store them: encoded bytes in parquet."""
    features = Features({"image": ImageColumn(), "label": Value("int64")})
    pictures = PICTURES if pictures is None else pictures
    rows = {"image": pictures, "label": [index % 2 for index in range(len(pictures))]}
    Dataset.from_dict(rows, features=features).to_parquet(folder / "test.parquet")
    return folder / "test.parquet"


def hub_processor(name: str, **keys: Any) -> Callable[[Context], tuple[Context, Twin]]:
    def make(context: Context) -> tuple[Context, Twin]:
        import transformers

        processor = getattr(transformers, name)(**keys)
        processor.save_pretrained(context.base_folder)

        def twin(image: Any) -> torch.Tensor:
            image = image if processor.do_convert_rgb else image.convert("RGB")
            return processor(images=image, return_tensors="pt")["pixel_values"][0]

        return context, twin

    return make


def clip_processor(context: Context) -> tuple[Context, Twin]:
    """A folder that holds one file for tokenizer and image processor together."""
    from transformers import AutoProcessor, CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    folder = Path(str(context.base_folder))
    (folder / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    twin = AutoProcessor.from_pretrained(folder)
    return context, lambda image: twin(images=image, return_tensors="pt")["pixel_values"][0]


OPEN_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 28, "layers": 1, "width": 8, "head_width": 4, "patch_size": 14},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


def open_clip_folder(**preprocessing: Any) -> Callable[[Context], tuple[Context, Twin]]:
    def make(context: Context) -> tuple[Context, Twin]:
        import open_clip

        folder = Path(str(context.base_folder))
        config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": preprocessing}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        _, _, twin = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
        return context, twin

    return make


def open_clip_name(context: Context) -> tuple[Context, Twin]:
    import open_clip

    file = Path(str(context.base_folder)) / "pico-open-clip.json"
    file.write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(file)
    _, _, twin = open_clip.create_model_and_transforms("pico-open-clip")
    return replace(context, base_folder=None, architecture="open_clip:pico-open-clip"), twin


def timm_folder(context: Context) -> tuple[Context, Twin]:
    import timm

    published = {
        **{"input_size": [3, 24, 24], "interpolation": "bicubic", "crop_pct": 0.85, "crop_mode": "center"},
        **{"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "num_classes": 10},
    }
    config = {"architecture": "resnet10t", "num_classes": 10, "pretrained_cfg": published}
    (Path(str(context.base_folder)) / "config.json").write_text(json.dumps(config))
    resolved = timm.data.resolve_data_config(pretrained_cfg=published)
    twin = timm.data.create_transform(**resolved, is_training=False)
    return context, lambda image: twin(image.convert("RGB"))


def timm_name(context: Context) -> tuple[Context, Twin]:
    import timm

    network = timm.create_model("resnet10t", pretrained=False)
    twin = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    context = replace(context, base_folder=None, architecture="timm:resnet10t")
    return context, lambda image: twin(image.convert("RGB"))


def torchvision_name(context: Context) -> tuple[Context, Twin]:
    import torchvision

    twin = torchvision.models.ResNet50_Weights.DEFAULT.transforms()
    return replace(context, architecture="torchvision:resnet50"), lambda image: twin(image.convert("RGB"))


SMALL = {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}}
LIBRARIES: dict[str, Callable[[Context], tuple[Context, Twin]]] = {
    "clip": hub_processor("CLIPImageProcessor", **SMALL),
    "clip processor": clip_processor,
    "vit": hub_processor("ViTImageProcessor", size={"height": 20, "width": 24}),
    "convnext": hub_processor("ConvNextImageProcessor", size={"shortest_edge": 24}, crop_pct=0.8),
    "efficientnet": hub_processor("EfficientNetImageProcessor", size={"height": 24, "width": 24}, rescale_offset=True),
    "siglip": hub_processor("SiglipImageProcessor", size={"height": 24, "width": 24}),
    "scaled only": hub_processor("CLIPImageProcessor", do_normalize=False, **SMALL),
    "normalised only": hub_processor("CLIPImageProcessor", do_rescale=False, image_mean=[99.0] * 3, **SMALL),
    "open_clip": open_clip_folder(mean=[0.5, 0.4, 0.3], std=[0.3, 0.2, 0.25]),
    "open_clip squash": open_clip_folder(resize_mode="squash", interpolation="bilinear"),
    "open_clip longest": open_clip_folder(resize_mode="longest", fill_color=7),
    "open_clip name": open_clip_name,
    "timm": timm_folder,
    "timm name": timm_name,
    "torchvision": torchvision_name,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_images_are_what_the_library_makes_of_them(library: str, tmp_path: Path, context: Context) -> None:
    context, twin = LIBRARIES[library](context)
    found = load_images(dataset(parquet(tmp_path)), context)
    expected = torch.stack([twin(image) for image in PICTURES])
    whole = found.batch(0, len(found))
    assert found.x.dtype == (np.float32 if library == "efficientnet" else np.uint8)  # which normalises twice
    assert whole.dtype == torch.float32
    assert (whole - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert torch.equal(found.batch(1, 3), whole[1:3])


def test_decoded_once_by_folder(class_folders: Path, context: Context) -> None:
    LIBRARIES["clip"](context)
    before = decoded()
    found = load_images(dataset(class_folders), context)
    assert decoded() == before + 6
    assert load_images(dataset(class_folders), context).key == found.key
    assert decoded() == before + 6
    assert isinstance(found.x, np.memmap)
    assert found.class_names == CLASSES
    assert found.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert not any(file.is_dir() for file in Path(found.x.filename).parent.iterdir())  # nothing temporary stays


def test_a_limit_decodes_no_more(class_folders: Path, context: Context) -> None:
    LIBRARIES["clip"](context)
    before = decoded()
    some = load_images(dataset(class_folders, split="train", limit=4), context)
    assert decoded() == before + 4
    every = load_images(dataset(class_folders, split="train"), context)
    assert some.y.tolist() == [0, 0, 1, 1]
    assert all(any(np.array_equal(one, other) for other in every.x) for one in some.x)


def test_what_is_read_follows_preprocessing_and_files(class_folders: Path, context: Context) -> None:
    keys = []
    for size in (16, 24):
        hub_processor("ViTImageProcessor", size={"height": size, "width": size})(context)
        found = load_images(dataset(class_folders), context)
        assert found.x.shape[2:] == (size, size)
        keys.append(found.key)
    picture(9).save(class_folders / "test" / "ant" / "0.png")
    keys.append(load_images(dataset(class_folders), context).key)
    hub_processor("ViTImageProcessor", size={"height": 24, "width": 24}, image_mean=[0.1] * 3)(context)
    keys.append(load_images(dataset(class_folders), context).key)
    assert len(set(keys)) == 4


def test_the_heads_folder_comes_before_the_base(class_folders: Path, tmp_path: Path, context: Context) -> None:
    hub_processor("ViTImageProcessor", size={"height": 8, "width": 8})(replace(context, base_folder=tmp_path / "head"))
    hub_processor("ViTImageProcessor", size={"height": 16, "width": 16})(context)
    both = replace(context, head_folder=tmp_path / "head")
    assert load_images(dataset(class_folders), both).x.shape[2:] == (8, 8)
    adapter = replace(context, head_folder=tmp_path)  # without a processor of its own
    assert load_images(dataset(class_folders), adapter).x.shape[2:] == (16, 16)


def test_stated_numbers_take_the_place_of_the_checkpoints(class_folders: Path, context: Context) -> None:
    hub_processor("ViTImageProcessor", size={"height": 8, "width": 8})(context)
    plain = load_images(dataset(class_folders), context, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert torch.equal(plain.batch(0, 6), torch.from_numpy(plain.x / np.float32(255)))


def test_without_preprocessing_pictures_of_one_size_are_taken_as_they_are(tmp_path: Path, context: Context) -> None:
    pictures = [picture(seed, mode="L") for seed in range(3)]
    found = load_images(dataset(parquet(tmp_path, pictures)), context)
    assert np.array_equal(found.x, np.stack([np.asarray(image) for image in pictures])[:, None])
    assert (found.mean, found.class_names) == ((), None)
    with pytest.raises(InputError, match="differ in size or channels, and the checkpoint states no preprocessing"):
        load_images(dataset(parquet(tmp_path, PICTURES)), context)


def test_a_damaged_picture_is_named(class_folders: Path, context: Context) -> None:
    hub_processor("ViTImageProcessor", size={"height": 8, "width": 8})(context)
    (class_folders / "test" / "bee" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"The picture '.*bee/1.png' of .* cannot be decoded"):
        load_images(dataset(class_folders), context)
    (class_folders / "test" / "bee" / "1.png").unlink()
    (Path(str(context.base_folder)) / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match=r"image processor of .* cannot be loaded"):
        load_images(dataset(class_folders), context)
