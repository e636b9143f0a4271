"""Language models, classifiers and adapters: in memory and exported as in `test_families`; `verify` for each kind."""

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
from mergecore.reloaded import reload_and_measure
from tests.mergecore.families import (
    IDS,
    TEXT,
    C,
    assert_same,
    in_folder,
    in_memory,
    prepared,
    reloaded,
    saved,
)

__all__ = ["in_folder"]  # a fixture


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
