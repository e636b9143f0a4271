"""The two towers of a CLIP, of open_clip and of transformers alike: tokens, text features, image features."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from mergecore.architectures.build import resolve
from mergecore.architectures.hub_transformers import quiet_transformers
from mergecore.architectures.open_clip_models import OpenClipModel
from mergecore.data.tokenizers import TOKENIZER_FILES
from mergecore.errors import InputError
from mergecore.evaluators.base import Candidate, Context
from mergecore.evaluators.batching import Batcher
from mergecore.files import file_digest

NO_TEXT = re.compile(r"(^|\.)(visual|vision_model|visual_projection|logit_scale|logit_bias)(\.|$)")
"""Names, in files of either library, of the tensors that text features do not depend on."""


def text_is_frozen(candidate: Candidate) -> bool:
    """Whether text features are the same for all candidates."""
    return candidate.merged is not None and all(NO_TEXT.search(name) for name in candidate.merged)


def tokenizer_facts(context: Context) -> Any:
    """What decides how sentences become tokens, as JSON, without loading the tokenizer.

    Raises:
        InputError: the folder of the network has no tokenizer.
    """
    folder = context.folder
    found = {}
    if folder is not None:
        found = {name: file_digest(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    if _is_open_clip(context):
        return ["open_clip", version("open_clip_torch"), context.architecture, found]
    if not found:
        raise InputError(
            f"The folder of {context.base!r} has no tokenizer, so prompts cannot be encoded.",
            "Copy tokenizer.json (or vocab.json and merges.txt) of the original model into it.",
        )
    return ["transformers", found]


def tokenize(context: Context, sentences: Sequence[str]) -> dict[str, torch.Tensor]:
    """Arguments of the text tower, each [n, tokens]; sentences that are too long are cut."""
    if _is_open_clip(context):
        import open_clip

        model = context.architecture.partition(":")[2].partition("/")[0]
        tokenizer = open_clip.get_tokenizer(model or f"local-dir:{context.folder}")
        return {"text": tokenizer(list(sentences))}
    from transformers import AutoConfig, AutoTokenizer

    assert context.folder is not None  # `tokenizer_facts` found a tokenizer in it
    with quiet_transformers():
        config = AutoConfig.from_pretrained(context.folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(context.folder, local_files_only=True)
    # where attention is causal, padding after the sentence changes nothing; others were trained on full length
    padding = "longest" if config.model_type == "clip" else "max_length"
    limit = config.text_config.max_position_embeddings
    found = tokenizer(list(sentences), padding=padding, truncation=True, max_length=limit, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask") if name in found}


def text_features(
    candidate: Candidate, module: torch.nn.Module, tokens: Mapping[str, torch.Tensor], *, classes: int, batcher: Batcher
) -> torch.Tensor:
    """Mean of each class's normalised features over its templates, normalised again: float32 [classes, D].

    Args:
        candidate: says how forward passes are run.
        module: the CLIP.
        tokens: of every template of the first class, then of the second, and so on.
        classes: number of classes.
        batcher: cuts the sentences into batches.
    """
    count = len(next(iter(tokens.values())))

    def batch(start: int, stop: int) -> torch.Tensor:
        part = {name: values[start:stop].to(candidate.device) for name, values in tokens.items()}
        with candidate.forward():
            encode: Any = module.encode_text if hasattr(module, "encode_text") else module.get_text_features
            return normalised(_features(encode(**part)))

    features = torch.cat(batcher.map(count, batch))
    with candidate.mode():
        return normalised(features.view(classes, count // classes, -1).mean(dim=1))


def image_features(candidate: Candidate, module: torch.nn.Module, images_bCHW: torch.Tensor) -> torch.Tensor:
    """Normalised features of images, float32 [b, D].

    Raises:
        InputError: the network has not both towers of a CLIP.
    """
    encode = getattr(module, "encode_image", None) or getattr(module, "get_image_features", None)
    if encode is None or not (hasattr(module, "encode_text") or hasattr(module, "get_text_features")):
        raise InputError(f"{type(module).__name__} is no CLIP: it does not encode images and texts.")
    with candidate.forward():
        return normalised(_features(encode(images_bCHW)))


def normalised(features: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, in float32."""
    with torch.autocast(features.device.type, enabled=False):
        return torch.nn.functional.normalize(features.float(), dim=-1)


def _features(output: Any) -> torch.Tensor:
    features: torch.Tensor = getattr(output, "pooler_output", output)  # since version 5 of transformers
    return features


def _is_open_clip(context: Context) -> bool:
    return isinstance(resolve(context.architecture or None, context.folder, context.base), OpenClipModel)
