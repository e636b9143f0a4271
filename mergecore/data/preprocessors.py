"""A checkpoint's own image preprocessing, up to the bytes that every evaluation starts from.

Resizing and cropping end in bytes; scaling and normalising are two numbers a channel, applied to a whole batch on the
device (`mergecore.data.images.Images.batch`). So the cache holds a quarter of the floats and loses nothing. A processor
that does anything else after resizing is found out by a trial, and its floats are kept instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergecore.errors import InputError, first_line
from mergecore.files import file_digest, read_json_mapping
from mergecore.registry import did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

    from mergecore.evaluators.base import Context

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
OPEN_CLIP_FILE = "open_clip_config.json"

ToArray = Callable[["Image"], np.ndarray]


@dataclass(frozen=True)
class Pipeline:
    """Preprocessing that is ready to run.

    Attributes:
        to_array: a picture of any size to [C, H, W]: uint8, or float32 ready for the network.
        mean: per channel, subtracted after scaling bytes to [0, 1]; empty when nothing is normalised.
        std: per channel, divided by.
    """

    to_array: ToArray
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Preprocessor:
    """Preprocessing that has been found, but not loaded.

    Attributes:
        facts: what decides its output, as plain JSON, library version included.
        load: imports the library and returns the pipeline.
    """

    facts: Any
    load: Callable[[], Pipeline]


def find_preprocessor(context: Context) -> Preprocessor | None:
    """The preprocessing of the network that a task is measured on; None when nothing states one.

    By the files of the head's folder, then of the base's; else by ``context.architecture`` where that names a model of
    a library.
    """
    for folder in (context.head_folder, context.base_folder):
        found = _by_files(folder) if folder is not None else None
        if found is not None:
            return found
    family, _, name = context.architecture.partition(":")
    if name and family in BY_NAME:
        library, load = BY_NAME[family]
        return Preprocessor([family, name, version(library), version("pillow")], lambda: load(name))
    return None


def as_picture(image: Image, channels: int) -> Image:
    """The picture with one channel (grey) or three (red, green, blue)."""
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _by_files(folder: Path) -> Preprocessor | None:
    processor = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    if processor:
        libraries = [version(library) for library in ("transformers", "torchvision", "pillow")]
        facts = ["transformers", [file_digest(file) for file in processor], libraries]
        return Preprocessor(facts, lambda: _transformers(folder))
    content = read_json_mapping(folder / OPEN_CLIP_FILE)
    if isinstance(content.get("model_cfg"), dict):
        config = {**(content.get("preprocess_cfg") or {}), **_open_clip_size(content["model_cfg"])}
        libraries = [version(library) for library in ("open_clip_torch", "pillow")]
        return Preprocessor(["open_clip", config, libraries], lambda: _open_clip(config))
    content = read_json_mapping(folder / "config.json")
    if "architecture" in content and isinstance(content.get("pretrained_cfg"), dict):
        config = content["pretrained_cfg"]
        return Preprocessor(["timm", config, version("timm"), version("pillow")], lambda: _timm(config))
    return None


def _transformers(folder: Path) -> Pipeline:
    from transformers import AutoImageProcessor

    from mergecore.architectures.hub_transformers import quiet_transformers

    try:
        with quiet_transformers():
            processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError, ImportError) as error:
        reason = first_line(error)
        raise InputError(f"The image processor of {str(folder)!r} cannot be loaded: {reason}.") from None
    mean, std = _numbers(processor)
    converts = bool(getattr(processor, "do_convert_rgb", False))

    def to_floats(image: Image, **steps: bool) -> np.ndarray:
        picture = image if converts else as_picture(image, len(mean) or 3)
        return np.asarray(processor(images=picture, return_tensors="np", **steps)["pixel_values"])[0]

    def to_bytes(image: Image) -> np.ndarray:
        return to_floats(image, do_rescale=False, do_normalize=False)

    return Pipeline(to_bytes, mean, std) if _agree(to_bytes, mean, std, to_floats) else Pipeline(to_floats, (), ())


def _numbers(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for bytes scaled by 1/255, from a processor that may scale otherwise or not at all."""
    factor = 255.0 * (float(processor.rescale_factor) if processor.do_rescale else 1.0)
    factor = 1.0 if abs(factor - 1.0) < 1e-6 else factor
    if getattr(processor, "do_normalize", False):
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    elif factor == 1.0:
        return (), ()
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return tuple(float(value) / factor for value in mean), tuple(float(value) / factor for value in std)


def _agree(to_bytes: ToArray, mean: tuple[float, ...], std: tuple[float, ...], to_floats: ToArray) -> bool:
    """Whether bytes, scaled and normalised, are the floats: tried on a picture of gradients."""
    from PIL import Image as Images

    grey = Images.linear_gradient("L")
    trial = Images.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    floats_CHW = to_floats(trial)
    try:
        bytes_CHW = to_bytes(trial)
    except (TypeError, ValueError, RuntimeError):  # it cannot do without normalising
        return False
    if bytes_CHW.dtype != np.uint8 or bytes_CHW.shape != floats_CHW.shape:
        return False
    scaled_CHW = bytes_CHW / 255
    if mean:
        scaled_CHW = (scaled_CHW - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    return bool(np.abs(scaled_CHW - floats_CHW).max() <= 1e-5 * np.abs(floats_CHW).max())


def _open_clip(config: dict[str, Any]) -> Pipeline:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    known = {key: value for key, value in config.items() if key in PreprocessCfg.__dataclass_fields__}
    return _composed(image_transform_v2(PreprocessCfg(**known), is_train=False).transforms, colours_first=False)


def _open_clip_by_name(name: str) -> Pipeline:
    import open_clip

    from mergecore.architectures.open_clip_models import pretrained_config

    model, _, tag = name.partition("/")
    stated = open_clip.get_model_config(model)
    if stated is None:
        raise InputError(f"open_clip has no model {model!r}.", did_you_mean(model, open_clip.list_models()))
    published = pretrained_config(model, tag) if tag else {}
    return _open_clip({key: value for key, value in published.items() if value} | _open_clip_size(stated))


def _open_clip_size(config: dict[str, Any]) -> dict[str, Any]:
    """The network knows best what size it reads."""
    size = (config.get("vision_cfg") or {}).get("image_size")
    return {} if size is None else {"size": size}


def _timm(config: dict[str, Any]) -> Pipeline:
    from timm.data import create_transform, resolve_data_config

    resolved = resolve_data_config(pretrained_cfg=config)
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    transform = create_transform(**{key: resolved[key] for key in keys}, is_training=False)
    return _composed(transform.transforms, colours_first=True)  # as the library's own loaders do


def _timm_by_name(name: str) -> Pipeline:
    import timm

    found = timm.get_pretrained_cfg(name)
    return _timm(found.to_dict() if found is not None else {})


def _torchvision(name: str) -> Pipeline:
    """What the library's best weights of that name were evaluated with; 224 pixels where there are none."""
    from torchvision import models
    from torchvision.transforms import functional
    from torchvision.transforms._presets import ImageClassification

    weights = getattr(models.get_model_weights(name), "DEFAULT", None)
    preset = weights.transforms() if weights is not None else ImageClassification(crop_size=224)

    def to_array(image: Image) -> np.ndarray:
        picture = functional.resize(
            as_picture(image, 3), preset.resize_size, interpolation=preset.interpolation, antialias=preset.antialias
        )
        return np.asarray(functional.pil_to_tensor(functional.center_crop(picture, preset.crop_size)))

    return Pipeline(to_array, tuple(preset.mean), tuple(preset.std))


def _composed(steps: list[Any], *, colours_first: bool) -> Pipeline:
    """Pipeline of a torchvision composition: pictures up to ``ToTensor``, numbers of the ``Normalize`` after it.

    Args:
        steps: the composition.
        colours_first: whether a picture becomes red, green and blue before the first step or after the last.
    """
    from torchvision.transforms import Normalize

    end = next(index for index, step in enumerate(steps) if type(step).__name__ in ("ToTensor", "MaybeToTensor"))
    normalise = next((step for step in steps[end:] if isinstance(step, Normalize)), None)
    mean, std = ((), ()) if normalise is None else (normalise.mean, normalise.std)

    def to_array(image: Image) -> np.ndarray:
        picture: Any = as_picture(image, 3) if colours_first else image
        for step in steps[:end]:
            picture = step(picture)
        return np.asarray(as_picture(picture, 3)).transpose(2, 0, 1)

    return Pipeline(to_array, tuple(float(m) for m in mean), tuple(float(s) for s in std))


BY_NAME: dict[str, tuple[str, Callable[[str], Pipeline]]] = {
    "open_clip": ("open_clip_torch", _open_clip_by_name),
    "timm": ("timm", _timm_by_name),
    "torchvision": ("torchvision", _torchvision),
}
"""Family of ``architecture`` to the library's package and what loads the preprocessing of its model."""
