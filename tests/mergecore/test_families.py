"""Every family of networks that see: what a worker measures in memory is what the exported checkpoint gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergecore.architectures.hub_transformers import quiet_transformers
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.export import export_model
from tests.mergecore.families import (
    IDS,
    IMAGES,
    TEXT,
    C,
    assert_same,
    in_folder,
    in_memory,
    moved,
    prepared,
    reloaded,
    saved,
)

__all__ = ["in_folder"]  # a fixture


def test_transformers_clip(tmp_path: Path, home: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

    vision = {**TEXT, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config={**TEXT, "eos_token_id": 2}, vision_config=vision, projection_dim=8)
    base, first, second = saved(CLIPModel, config, tmp_path)
    tower = tmp_path / "tower"  # published fine-tuned CLIPs hold the vision tower only
    with quiet_transformers():
        CLIPVisionModel.from_pretrained(second).save_pretrained(tower)
    study = prepared(tmp_path, home, base, [first, tower])
    assert not study.heads

    def logits(module: torch.nn.Module) -> torch.Tensor:
        return module(input_ids=IDS, pixel_values=IMAGES).logits_per_image

    export_model(study, C, tmp_path / "out", measured={})
    with torch.no_grad():
        assert_same(in_memory(study, logits), logits(reloaded(CLIPModel, tmp_path / "out")))
    merged, text = load_file(tmp_path / "out" / "model.safetensors"), "text_model.final_layer_norm.weight"
    expected = load_file(base / "model.safetensors")[text], load_file(first / "model.safetensors")[text]
    torch.testing.assert_close(merged[text], torch.lerp(*expected, 0.4))  # the tower model leaves the text alone


OPEN_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 4, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1},
}


def test_open_clip_folder(tmp_path: Path, home: Path) -> None:
    import open_clip

    places = []
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))
    torch.manual_seed(0)
    module = open_clip.create_model(f"local-dir:{tmp_path / 'start'}", load_weights=False)
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))
        save_file(moved(module, seed).state_dict(), folder / "open_clip_model.safetensors")
        places.append(folder)
    study = prepared(tmp_path, home, places[0], places[1:])

    def logits(module: torch.nn.Module) -> torch.Tensor:
        return module.encode_image(IMAGES) @ module.encode_text(IDS).T

    export_model(study, C, tmp_path / "out", measured={})
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    with torch.no_grad():
        assert_same(in_memory(study, logits), logits(loaded))


def test_open_clip_by_name(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``open_clip:<model>/<tag>``: what the library would fetch is put in its place."""
    import open_clip

    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "Pico-16.json").write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    module = open_clip.create_model("Pico-16", load_weights=False, force_quick_gelu=True)
    files = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, file in enumerate(files):
        save_file(moved(module, seed).state_dict(), file)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: {"file": str(files[0]), "quick_gelu": True})
    study = prepared(tmp_path, home, "open_clip:Pico-16/tiny", files[1:])
    export_model(study, C, tmp_path / "out", measured={})
    loaded = open_clip.create_model(
        "Pico-16", pretrained=str(tmp_path / "out" / "model.safetensors"), force_quick_gelu=True
    ).eval()
    with torch.no_grad():
        assert_same(in_memory(study, lambda module: module.encode_image(IMAGES)), loaded.encode_image(IMAGES))


def test_transformers_resnet_with_heads(tmp_path: Path, home: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    places = []
    for seed, classes in enumerate((5, 3, 4)):
        config = ResNetConfig(**shape, num_labels=classes)
        places += saved(ResNetForImageClassification, config, tmp_path / f"c{classes}", 1, seed)
    study = prepared(tmp_path, home, places[0], places[1:])
    assert set(study.heads) == {"m0", "m1", "base"}
    for head, classes in (("m0", 3), ("m1", 4), ("base", 5), (None, 5)):
        export_model(study, C, tmp_path / f"out {head}", measured={}, head=head)
        loaded = reloaded(ResNetForImageClassification, tmp_path / f"out {head}")
        if head is None:
            continue  # in memory, a head is always chosen
        with torch.no_grad():
            expected = loaded(IMAGES).logits
        assert expected.shape == (2, classes)
        assert_same(in_memory(study, lambda module: module(IMAGES).logits, head), expected)
    with pytest.raises(InputError, match="no head 'm7'"):
        export_model(study, C, tmp_path / "none", measured={}, head="m7")


@pytest.mark.parametrize("refit", [False, True])
def test_an_export_holds_what_a_task_adapts_after_merging(tmp_path: Path, home: Path, refit: bool) -> None:
    """Batch-norm statistics, and a head fitted to fewer classes than the base's: the reloaded network scores alike."""
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    places = saved(ResNetForImageClassification, ResNetConfig(**shape, num_labels=5), tmp_path)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 96), ("validation", 60)):
        labels = rng.integers(0, 3, count)
        arrays[f"x_{split}"] = rng.normal(labels[:, None, None, None] - 1, 1.0, (count, 3, 16, 16)).astype(np.float32)
        arrays[f"y_{split}"] = labels
    np.savez(tmp_path / "data.npz", **arrays)
    args: dict[str, object] = {"batch_norm": {"batch_size": 32}}
    args |= {"refit_head": {"method": "closed_form"}} if refit else {}
    data = {"path": str(tmp_path / "data.npz"), "split": "validation"}
    tasks = [{"name": name, "dataset": data, "args": args} for name in ("m0", "m1")]
    study = prepared(tmp_path, home, places[0], places[1:], tasks=tasks)
    evaluator = CandidateEvaluator(study)
    measured = evaluator.evaluate(C, [0])[0].metrics["accuracy"]
    export_model(study, C, tmp_path / "out", measured={}, adapted=evaluator.adapted_tensors(C, 0))
    loaded = reloaded(ResNetForImageClassification, tmp_path / "out")
    with torch.no_grad():
        logits = loaded(torch.from_numpy(arrays["x_validation"])).logits
    assert logits.shape[1] == (3 if refit else 5)
    assert float((logits.argmax(1).numpy() == arrays["y_validation"]).mean()) == measured
    assert evaluator.evaluate(C, [0])[0].metrics["accuracy"] == measured  # the candidate is as it was


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_resnets_of_other_libraries(tmp_path: Path, home: Path, family: str) -> None:
    import timm
    import torchvision

    def create(classes: int) -> torch.nn.Module:
        if family == "timm":
            return timm.create_model("resnet10t", num_classes=classes)
        return torchvision.models.resnet18(num_classes=classes)

    torch.manual_seed(0)
    start = create(7)
    files = []
    for seed, classes in enumerate((7, 3, 7)):
        module = create(classes)
        shared = {name: t for name, t in start.state_dict().items() if not name.startswith("fc.")}
        module.load_state_dict(shared, strict=False)
        files.append(tmp_path / f"{seed}.pt")
        torch.save({"state_dict": moved(module, seed).state_dict()}, files[-1])
    name = "timm:resnet10t" if family == "timm" else "torchvision:resnet18"
    study = prepared(tmp_path, home, files[0], files[1:], architecture=name)
    for head, classes in (("m0", 3), ("m1", 7)):
        export_model(study, C, tmp_path / f"out {head}", measured={}, head=head)
        loaded = create(classes).eval()
        loaded.load_state_dict(load_file(tmp_path / f"out {head}" / "model.safetensors"))
        with torch.no_grad():
            assert_same(in_memory(study, lambda module: module(IMAGES), head), loaded(IMAGES))


def test_timm_folder(tmp_path: Path, home: Path) -> None:
    import timm

    torch.manual_seed(0)
    module = timm.create_model("resnet10t", num_classes=4)
    places = []
    for seed in range(3):
        places.append(tmp_path / str(seed))
        places[-1].mkdir()
        save_file(moved(module, seed).state_dict(), places[-1] / "model.safetensors")
        (places[-1] / "config.json").write_text(json.dumps({"architecture": "resnet10t", "num_classes": 4}))
    study = prepared(tmp_path, home, places[0], places[1:])
    export_model(study, C, tmp_path / "out", measured={})
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        assert_same(in_memory(study, lambda module: module(IMAGES)), loaded(IMAGES))
