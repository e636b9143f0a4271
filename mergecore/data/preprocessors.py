"""A checkpoint's own image preprocessing, up to the bytes that every evaluation starts from.

Resizing and cropping end in bytes; scaling and normalising are two numbers a channel, applied to a whole batch on the
device (`mergecore.data.images.Images.batch`). So the cache holds a quarter of the floats and loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergecore.errors import InputError
from mergecore.files import file_digest
from mergecore.registry import did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

    from mergecore.evaluators.base import Context

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
OPEN_CLIP_FILE = "open_clip_config.json"


@dataclass(frozen=True)
class Pipeline:
    """Preprocessing that is ready to run.

    Attributes:
        to_bytes: a picture of any size to uint8 [C, H, W].
        mean: per channel, subtracted after scaling bytes to [0, 1]; empty when nothing is normalised.
        std: per channel, divided by.
    """

    to_bytes: Callable[[Image], np.ndarray]
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

    By ``context.architecture`` where that names a library's model, else by the files of the head's folder, then of the
    base's.
    """
    family, _, name = context.architecture.partition(":")
    folders = [folder for folder in (context.head_folder, context.base_folder) if folder is not None]
    for folder in folders:
        found = _by_files(folder)
        if found is not None:
            return found
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
        facts = ["transformers", [file_digest(file) for file in processor]]
        libraries = [version(library) for library in ("transformers", "torchvision", "pillow")]
        return Preprocessor([*facts, libraries], lambda: _transformers(folder))
    content = _read(folder / OPEN_CLIP_FILE)
    if isinstance(content.get("model_cfg"), dict):
        config = {**(content.get("preprocess_cfg") or {}), **_open_clip_size(content["model_cfg"])}
        libraries = [version(library) for library in ("open_clip_torch", "pillow")]
        return Preprocessor(["open_clip", config, libraries], lambda: _open_clip(config))
    content = _read(folder / "config.json")
    if "architecture" in content and isinstance(content.get("pretrained_cfg"), dict):
        config = content["pretrained_cfg"]
        return Preprocessor(["timm", config, version("timm"), version("pillow")], lambda: _timm(config))
    return None


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError:
        raise InputError(f"{str(file)!r} is not readable JSON.") from None
    return content if isinstance(content, dict) else {}


def _transformers(folder: Path) -> Pipeline:
    from transformers import AutoImageProcessor

    from mergecore.architectures.hub_transformers import quiet_transformers

    try:
        with quiet_transformers():
            processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"The image processor of {str(folder)!r} cannot be loaded: {reason}.") from None
    mean, std = _scaled(processor)

    def to_bytes(image: Image) -> np.ndarray:
        picture = as_picture(image, len(mean) or 3)
        found = processor(images=picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        pixels = np.asarray(found)[0]
        if pixels.dtype != np.uint8 or pixels.ndim != 3:
            raise InputError(f"{type(processor).__name__} of {str(folder)!r} does not turn a picture into bytes.")
        return pixels

    return Pipeline(to_bytes, mean, std)


def _scaled(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for bytes scaled by 1/255, from a processor that may scale otherwise.

    It computes (byte · factor − offset − mean) / std.
    """
    factor = 255.0 * (float(processor.rescale_factor) if processor.do_rescale else 1.0)
    factor = 1.0 if abs(factor - 1.0) < 1e-6 else factor
    offset = 1.0 if processor.do_rescale and getattr(processor, "rescale_offset", False) else 0.0
    normalises = bool(getattr(processor, "do_normalize", False))
    if not normalises and factor == 1.0 and not offset:
        return (), ()
    mean, std = (processor.image_mean, processor.image_std) if normalises else ((0.0,) * 3, (1.0,) * 3)
    return tuple((float(m) + offset) / factor for m in mean), tuple(float(s) / factor for s in std)


def _open_clip(config: dict[str, Any]) -> Pipeline:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    known = {key: value for key, value in config.items() if key in PreprocessCfg.__dataclass_fields__}
    return _composed(image_transform_v2(PreprocessCfg(**known), is_train=False).transforms)


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
    return _composed(create_transform(**{key: resolved[key] for key in keys}, is_training=False).transforms)


def _timm_by_name(name: str) -> Pipeline:
    import timm

    found = timm.get_pretrained_cfg(name)
    return _timm(found.to_dict() if found is not None else {})


def _torchvision(name: str) -> Pipeline:
    from torchvision import models
    from torchvision.transforms import functional
    from torchvision.transforms._presets import ImageClassification

    weights = getattr(models.get_model_weights(name), "DEFAULT", None)
    preset = weights.transforms() if weights is not None else ImageClassification(crop_size=224)

    def to_bytes(image: Image) -> np.ndarray:
        picture = as_picture(image, 3)
        picture = functional.resize(
            picture, preset.resize_size, interpolation=preset.interpolation, antialias=preset.antialias
        )
        return np.asarray(functional.pil_to_tensor(functional.center_crop(picture, preset.crop_size)))

    return Pipeline(to_bytes, tuple(preset.mean), tuple(preset.std))


def _composed(steps: list[Any]) -> Pipeline:
    """Pipeline of a torchvision composition: pictures up to ``ToTensor``, numbers of the ``Normalize`` after it."""
    from torchvision.transforms import Normalize

    end = next(index for index, step in enumerate(steps) if type(step).__name__ in ("ToTensor", "MaybeToTensor"))
    normalise = next((step for step in steps[end:] if isinstance(step, Normalize)), None)
    mean, std = ((), ()) if normalise is None else (normalise.mean, normalise.std)

    def to_bytes(image: Image) -> np.ndarray:
        picture: Any = as_picture(image, 3)
        for step in steps[:end]:
            picture = step(picture)
        return np.ascontiguousarray(np.asarray(as_picture(picture, 3)).transpose(2, 0, 1))

    return Pipeline(to_bytes, tuple(float(m) for m in mean), tuple(float(s) for s in std))


BY_NAME: dict[str, tuple[str, Callable[[str], Pipeline]]] = {
    "open_clip": ("open_clip_torch", _open_clip_by_name),
    "timm": ("timm", _timm_by_name),
    "torchvision": ("torchvision", _torchvision),
}
"""Family of ``architecture`` to the library's package and what loads the preprocessing of its model."""
