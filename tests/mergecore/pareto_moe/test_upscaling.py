"""Which modules get a router, on real architectures without weights; the paper's numbers of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergecore.errors import InputError
from mergecore.pareto_moe.upscaling import Upscaling, upscale


def open_clip_names(model: str) -> list[str]:
    import open_clip

    with torch.device("meta"):
        return list(open_clip.create_model(model, pretrained=None, device="meta").state_dict())


def transformers_names(cls: str, config: str, **changes: Any) -> list[str]:
    import transformers

    with torch.device("meta"):
        network = getattr(transformers, cls)(getattr(transformers, config)(**changes))
    return list(network.state_dict())


def saved_vit(folder: Any, cls: str = "ViTModel", config: str = "ViTConfig", **changes: Any) -> list[str]:
    """Names as files have them, which may not be those of the network in memory."""
    import transformers
    from safetensors import safe_open

    sizes = {"hidden_size": 8, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 16}
    getattr(transformers, cls)(getattr(transformers, config)(**(sizes | changes))).save_pretrained(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as handle:
        return list(handle.keys())


def count(found: Upscaling, models: int) -> int:
    return len(found.modules) * (4 * models**2 + 3 * models)


@pytest.fixture(scope="module")
def vit_b_32() -> list[str]:
    return open_clip_names("ViT-B-32")


@pytest.mark.parametrize(
    ("rule", "models", "parameters"),
    [("mlp", 2, 264), ("mlp", 3, 540), ("mlp", 8, 3_360), ("all", 2, 1_430), ("all", 8, 18_200)],
)
def test_the_papers_counts_for_vit_b_32(vit_b_32: list[str], rule: str, models: int, parameters: int) -> None:
    assert count(upscale(vit_b_32, rule), models) == parameters
    vision = [name for name in vit_b_32 if name.startswith("visual.")]
    assert count(upscale(vision, rule), models) == parameters, "checkpoints of the image encoder alone count the same"
    hub = transformers_names("CLIPModel", "CLIPConfig")  # ViT-B/32 by default
    assert count(upscale(hub, rule), models) == parameters


@pytest.mark.parametrize(("models", "parameters"), [(2, 528), (8, 6_720)])
def test_the_papers_counts_for_vit_l_14(models: int, parameters: int) -> None:
    assert count(upscale(open_clip_names("ViT-L-14"), "mlp"), models) == parameters


def test_the_papers_count_for_gpt_2() -> None:
    assert count(upscale(transformers_names("GPT2LMHeadModel", "GPT2Config"), "mlp"), 2) == 264


def test_published_modules_in_their_order(vit_b_32: list[str]) -> None:
    found = upscale(vit_b_32, "all")
    block = [f"visual.transformer.resblocks.10.{part}" for part in ("ln_1", "attn", "ln_attn", "ln_2", "mlp")]
    assert found.modules[:2] == ("visual.conv1", "visual.ln_pre")
    assert list(found.modules[52:57]) == block
    assert found.modules[-3:] == ("visual.ln_post", "token_embedding", "ln_final")
    assert set(found.idle) == {f"visual.transformer.resblocks.{i}.ln_attn" for i in range(12)}
    assert found.block_of("visual.transformer.resblocks.3.mlp.c_fc.weight") == "visual.transformer.resblocks.3.mlp"
    for left in ("visual.class_embedding", "visual.proj", "logit_scale", "transformer.resblocks.0.mlp.c_fc.weight"):
        assert found.block_of(left) is None
    assert found.describe("visual.transformer.resblocks.3.mlp") == ("mlp", 3)
    assert found.describe("visual.conv1") == ("stem", None)


@pytest.mark.parametrize("prefix", ["", "module.", "model.base."])
def test_a_prefix_is_no_difference(vit_b_32: list[str], prefix: str) -> None:
    plain = upscale(vit_b_32, "all")
    assert upscale([prefix + name for name in vit_b_32], "all").modules == tuple(prefix + m for m in plain.modules)


CASES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"num_hidden_layers": 3}, "model.layers.2.mlp"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"num_hidden_layers": 3}, "model.layers.2.mlp"),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"num_hidden_layers": 3}, "model.layers.2.mlp"),
    "gpt2": ("GPT2Model", "GPT2Config", {"n_layer": 3}, "h.2.mlp"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_language_models(name: str) -> None:
    cls, config, changes, last = CASES[name]
    names = transformers_names(cls, config, **changes)
    assert upscale(names, "mlp").modules[-1] == last
    assert len(upscale(names, "attn+mlp").modules) == 6
    every = upscale(names, "all")
    assert len(every.modules) > 12
    assert not every.idle
    left = {name for name in names if every.block_of(name) is None}
    assert left <= {"lm_head.weight"}


@pytest.mark.parametrize(("cls", "config"), [("ViTForImageClassification", "ViTConfig"), ("BertModel", "BertConfig")])
def test_an_mlp_of_two_modules_has_one_router(tmp_path: Any, cls: str, config: str) -> None:
    names = saved_vit(tmp_path, cls, config)
    found = upscale(names, "mlp")
    assert len(found.modules) == 12
    assert found.modules[2].endswith("layer.2.mlp")
    assert found.modules[11].endswith("layer.11.mlp")
    own = {name for name in names if found.block_of(name) == found.modules[2]}
    assert {name.partition("layer.2.")[2].partition(".")[0] for name in own} == {"intermediate", "output"}
    both = upscale(names, "attn+mlp")
    assert len(both.modules) == 24
    assert all(".attention" in both.owners[name] for name in names if ".attention.output." in name)
    assert len(upscale(names, "block").modules) == 12


def test_timm_transformers() -> None:
    import timm

    with torch.device("meta"):
        names = list(timm.create_model("vit_tiny_patch16_224", pretrained=False).state_dict())
    assert len(upscale(names, "mlp").modules) == 12
    assert upscale(names, "all").modules[0] == "patch_embed"
    assert upscale(names, "all").modules[-1] == "norm"


def test_residual_networks_have_blocks() -> None:
    import torchvision

    with torch.device("meta"):
        names = list(torchvision.models.resnet18(weights=None).state_dict())
    found = upscale(names, "block")
    assert found.modules == tuple(f"layer{s}.{i}" for s in range(1, 5) for i in range(2))
    assert upscale(names, "all").modules == ("conv1", "bn1", *found.modules)
    with pytest.raises(InputError, match=r"ResNet has no rule 'mlp'.*It has: block, all"):
        upscale(names, "mlp")
    hub = transformers_names("ResNetModel", "ResNetConfig", depths=[1, 1, 2, 1])
    assert len(upscale(hub, "block").modules) == 5


@pytest.mark.parametrize("rule", ["mlp", "attn+mlp", "block", "all"])
def test_modules_share_no_tensor_and_own_one_place(vit_b_32: list[str], rule: str) -> None:
    found = upscale(vit_b_32, rule)
    assert set(found.owners) <= set(vit_b_32)
    assert set(found.owners.values()) <= set(found.modules)
    assert len(set(found.modules)) == len(found.modules)
    blocks = [number for module in found.modules if (number := found.describe(module)[1]) is not None]
    assert blocks == sorted(blocks)


def test_patterns_of_ones_own(vit_b_32: list[str]) -> None:
    found = upscale(vit_b_32, ["visual.*.attn", "visual.conv1"])
    assert len(found.modules) == 13
    assert found.modules[0] == "visual.conv1"
    assert [found.describe(module)[1] for module in found.modules[1:]] == list(range(12))
    outer = upscale(vit_b_32, ["visual.transformer.resblocks.*.attn", "visual.transformer"])
    assert outer.modules == ("visual.transformer",), "the outermost module is meant"
    assert upscale(vit_b_32, "visual.*.mlp").modules == upscale(vit_b_32, ["visual.*.mlp"]).modules


def test_what_means_nothing_is_said(vit_b_32: list[str]) -> None:
    with pytest.raises(InputError, match="Did you mean 'mlp'"):
        upscale(vit_b_32, "mpl")
    with pytest.raises(InputError, match=r"No module matches the pattern 'vision\.\*'.*There are modules like 'visual"):
        upscale(vit_b_32, ["visual.*.mlp", "vision.*"])
    with pytest.raises(InputError, match=r"No rule 'mlp' is known.*by patterns"):
        upscale(["odd.thing.weight", "odd.other.weight"], "mlp")
