"""Every family of networks: what a worker measures in memory is what the exported checkpoint gives when reloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergecore.architectures.hub_transformers import quiet_transformers
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.export import export_model
from mergecore.reloaded import reload_and_measure
from mergecore.study import Study, prepare

C = np.array([0.4, 0.7])


def prepared(tmp_path: Path, home: Path, base: object, models: list[object], **changes: object) -> Study:
    (tmp_path / "scores_of_test.py").write_text("def score(candidate):\n    return 0.5\n")
    task = {"evaluator": "python", "metric": "score", "direction": "maximize"}
    config = {
        "base": str(base),
        "models": [{"name": f"m{n}", "source": str(model)} for n, model in enumerate(models)],
        "tasks": [{"name": f"m{n}", "args": {"function": "scores_of_test:score"}, **task} for n in range(2)],
        **changes,
    }
    return prepare(parse_config(config), home)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def moved(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The same network with other parameters and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.dtype.is_floating_point:
                tensor.add_(0.03 * torch.randn(tensor.shape, generator=generator).abs())
    return module


def in_memory(study: Study, inputs: Callable[[torch.nn.Module], torch.Tensor], head: str | None = None) -> torch.Tensor:
    evaluator = CandidateEvaluator(study)
    assert not any(outcome.reason for outcome in evaluator.evaluate(C, [0]))
    candidate = evaluator.candidate(C, head)
    with candidate.forward():
        return inputs(candidate.module())


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def reloaded(cls: type, folder: Path) -> torch.nn.Module:
    with quiet_transformers():
        loaded = cls.from_pretrained(folder)
    return loaded.eval()


def saved(cls: type, config: object, folder: Path, seeds: int = 3, first: int = 0) -> list[Path]:
    torch.manual_seed(0)
    places = []
    with quiet_transformers():
        module = cls(config)
        for seed in range(first, first + seeds):
            places.append(folder / str(seed))
            moved(module, seed).save_pretrained(places[-1])
    return places


TEXT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IDS = torch.tensor([[3, 9, 40, 7], [5, 5, 1, 2]])
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


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


def pico_gpt2(**changes: object):
    from transformers import GPT2Config

    return GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=16, pad_token_id=0, **changes)


def test_gpt2_classifiers_over_a_bare_base(tmp_path: Path, home: Path) -> None:
    """The base as the hub has it: no prefix, causal masks among the weights, the language model's head tied."""
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

    (language,) = saved(GPT2LMHeadModel, pico_gpt2(), tmp_path / "lm", 1)
    state = {n.removeprefix("transformer."): t for n, t in load_file(language / "model.safetensors").items()}
    state = {n: t for n, t in state.items() if n != "lm_head.weight"}
    mask = torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16)
    state |= {f"h.{layer}.attn.bias": mask.clone() for layer in range(2)}
    save_file(state, language / "model.safetensors")
    places = []
    for classes in (2, 3):
        config = pico_gpt2(num_labels=classes)
        places += saved(GPT2ForSequenceClassification, config, tmp_path / f"c{classes}", 1, classes)
    study = prepared(tmp_path, home, language, places)
    for head, cls in (("m0", GPT2ForSequenceClassification), ("m1", GPT2ForSequenceClassification)):
        export_model(study, C, tmp_path / f"out {head}", measured={}, head=head)
        with torch.no_grad():
            expected = reloaded(cls, tmp_path / f"out {head}")(IDS).logits
        assert_same(in_memory(study, lambda module: module(IDS).logits, head), expected)
    export_model(study, C, tmp_path / "out", measured={})
    with torch.no_grad():
        expected = reloaded(GPT2LMHeadModel, tmp_path / "out")(IDS).logits
    assert_same(in_memory(study, lambda module: module(IDS).logits, "base"), expected)
    assert len(list((tmp_path / "out" / "heads").iterdir())) == 2


def test_bert_classifiers_over_a_masked_language_model(tmp_path: Path, home: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    (base,) = saved(BertForMaskedLM, BertConfig(**TEXT), tmp_path / "base", 1)
    places = [
        saved(BertForSequenceClassification, BertConfig(**TEXT, num_labels=n), tmp_path / f"c{n}", 1, n)[0]
        for n in (2, 3)
    ]
    study = prepared(tmp_path, home, base, places)
    for head in ("m0", "m1"):
        export_model(study, C, tmp_path / f"out {head}", measured={}, head=head)
        with torch.no_grad():
            expected = reloaded(BertForSequenceClassification, tmp_path / f"out {head}")(IDS).logits
        assert_same(in_memory(study, lambda module: module(IDS).logits, head), expected)


def pico_llama():
    from transformers import LlamaConfig

    return LlamaConfig(**TEXT, max_position_embeddings=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama(tmp_path: Path, home: Path, dtype: torch.dtype) -> None:
    from transformers import LlamaForCausalLM

    places = saved(LlamaForCausalLM, pico_llama(), tmp_path)
    for place in places:
        state = {name: t.to(dtype) for name, t in load_file(place / "model.safetensors").items()}
        save_file(state, place / "model.safetensors", metadata={"format": "pt"})
    precision = str(dtype).removeprefix("torch.")
    study = prepared(tmp_path, home, places[0], places[1:], execution={"precision": precision})
    export_model(study, C, tmp_path / "out", measured={})
    with quiet_transformers(), torch.no_grad():
        loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype).eval()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            expected = loaded(IDS).logits
    assert_same(in_memory(study, lambda module: module(IDS).logits), expected)


def adapter(base: Path, folder: Path, seed: int, cls: type, **changes: object) -> tuple[Path, torch.nn.Module]:
    """A LoRA adapter that changes something, and the network with it merged in by PEFT."""
    import peft

    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **changes}
    with quiet_transformers():
        network = cls.from_pretrained(base, **({"num_labels": 3} if changes.get("task_type") == "SEQ_CLS" else {}))
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(network, peft.LoraConfig(init_lora_weights=False, **options))
    adapted.save_pretrained(folder)
    return folder, adapted.merge_and_unload().eval()


def test_lora_adapters_of_different_rank_with_a_full_model(tmp_path: Path, home: Path) -> None:
    from transformers import LlamaForCausalLM

    base, full = saved(LlamaForCausalLM, pico_llama(), tmp_path, 2)
    one, one_whole = adapter(base, tmp_path / "a", 1, LlamaForCausalLM)
    changes = {"r": 2, "use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 3}, "lora_alpha": 5}
    two, two_whole = adapter(base, tmp_path / "b", 2, LlamaForCausalLM, **changes)
    c = np.array([0.4, 0.7, -0.3])
    study = prepared(tmp_path, home, base, [one, two, full])
    evaluator = CandidateEvaluator(study)
    evaluator.evaluate(c, [0])
    found = evaluator.candidate(c, None).weights
    start = load_file(base / "model.safetensors")
    whole = [one_whole.state_dict(), two_whole.state_dict(), load_file(full / "model.safetensors")]
    for name, tensor in start.items():
        expected = tensor + sum(x * (model[name] - tensor) for x, model in zip(c, whole, strict=True))
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
    export_model(study, c, tmp_path / "out", measured={})
    with torch.no_grad():
        expected = reloaded(LlamaForCausalLM, tmp_path / "out")(IDS).logits
        assert_same(evaluator.candidate(c, None).module()(IDS).logits, expected)


def test_lora_classifiers_bring_their_head(tmp_path: Path, home: Path) -> None:
    """Transposed weights, a head saved whole, and a base whose config knows of no classifier."""
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

    (base,) = saved(GPT2LMHeadModel, pico_gpt2(), tmp_path / "lm", 1)
    options = {"target_modules": ["c_attn", "c_proj"], "task_type": "SEQ_CLS", "fan_in_fan_out": True}
    made = [adapter(base, tmp_path / f"a{seed}", seed, GPT2ForSequenceClassification, **options) for seed in (1, 2)]
    study = prepared(tmp_path, home, base, [folder for folder, _ in made])
    assert set(study.heads) == {"m0", "m1", "base"}
    assert study.heads["m0"].classes == 3
    for number, (_, whole) in enumerate(made):
        evaluator = CandidateEvaluator(study)
        alone = np.eye(2)[number]
        evaluator.evaluate(alone, [0])
        with torch.no_grad():
            found = evaluator.candidate(alone, f"m{number}").module()(IDS).logits
            assert_same(found, whole(IDS).logits)
        export_model(study, alone, tmp_path / f"out{number}", measured={}, head=f"m{number}")
        with torch.no_grad():
            assert_same(found, reloaded(GPT2ForSequenceClassification, tmp_path / f"out{number}")(IDS).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"use_dora": True}, "DoRA"), ({"init": "pissa"}, "was started with 'pissa'"), ({"kind": "IA3"}, "type IA3")],
)
def test_adapters_that_are_no_low_rank_update(tmp_path: Path, home: Path, changes: dict, message: str) -> None:
    from transformers import LlamaForCausalLM

    base, full = saved(LlamaForCausalLM, pico_llama(), tmp_path, 2)
    one, _ = adapter(base, tmp_path / "a", 1, LlamaForCausalLM, **({"use_dora": True} if "use_dora" in changes else {}))
    file = one / "adapter_config.json"
    content = json.loads(file.read_text())
    content |= {"init_lora_weights": changes.get("init", True), "peft_type": changes.get("kind", "LORA")}
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        prepared(tmp_path, home, base, [one, full])


def test_an_adapter_of_another_base(tmp_path: Path, home: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    base, full = saved(LlamaForCausalLM, pico_llama(), tmp_path, 2)
    wide = LlamaConfig(**{**TEXT, "hidden_size": 24}, max_position_embeddings=16)
    (other,) = saved(LlamaForCausalLM, wide, tmp_path / "wide", 1)
    one, _ = adapter(other, tmp_path / "a", 1, LlamaForCausalLM)
    with pytest.raises(InputError, match=r"changes 'model\.layers\.0.*by a \[24, 24\] matrix"):
        prepared(tmp_path, home, base, [one, full])


LOGITS = """
import torch


def score(candidate):
    module = candidate.module()
    inputs = {"input_ids": torch.tensor([[3, 9, 40, 7]])}
    if hasattr(module, "vision_model"):
        inputs["pixel_values"] = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad(), candidate.forward():
        answer = module(**inputs)
    return float((answer.logits_per_image if "pixel_values" in inputs else answer.logits).double().abs().sum())
"""


def pico_clip() -> object:
    from transformers import CLIPConfig

    vision = {**TEXT, "image_size": 32, "patch_size": 16}
    return CLIPConfig(text_config={**TEXT, "eos_token_id": 2}, vision_config=vision, projection_dim=8)


@pytest.mark.parametrize("family", ["clip", "gpt2", "llama", "lora"])
def test_verify_finds_the_numbers_of_the_run(family: str, tmp_path: Path, home: Path) -> None:
    from transformers import CLIPModel, GPT2LMHeadModel, LlamaForCausalLM

    kinds = {"clip": (CLIPModel, pico_clip), "gpt2": (GPT2LMHeadModel, pico_gpt2)}
    cls, make = kinds.get(family, (LlamaForCausalLM, pico_llama))
    base, *models = saved(cls, make(), tmp_path, 3 if family != "lora" else 1)
    if family == "lora":
        models = [adapter(base, tmp_path / f"a{seed}", seed, cls)[0] for seed in (1, 2)]
    (tmp_path / "logits_of_test.py").write_text(LOGITS)
    task = {"evaluator": "python", "metric": "score", "direction": "maximize"}
    tasks = [{"name": name, "args": {"function": "logits_of_test:score"}, **task} for name in ("m0", "m1")]
    study = prepared(tmp_path, home, base, models, tasks=tasks)
    evaluator = CandidateEvaluator(study)
    scores = [evaluator.evaluate(c, [0])[0].metrics["score"] for c in (C, C + 0.1)]
    assert abs(scores[0] - scores[1]) > 1e-3 * abs(scores[0])
    for score, same in zip(scores, (True, False), strict=True):
        measured = {"real": {"m0": score, "m1": score}}
        export_model(study, C, tmp_path / f"out {same}", measured=measured)
        assert [item.same for item in reload_and_measure(tmp_path / f"out {same}", home)] == [same, same]
        reloaded(cls, tmp_path / f"out {same}")
