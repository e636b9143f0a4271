"""Each rule of which tensors belong together, on small state dicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergecore.checkpoints.alignment import BASE_HEAD, align
from mergecore.checkpoints.checkpoint import Checkpoint, from_state_dict, open_checkpoint
from mergecore.errors import InputError
from mergecore.task_vectors import build_task_matrix, check_mergeable

State = dict[str, torch.Tensor]


def body(seed: int, prefix: str = "") -> State:
    """A two-layer encoder with embeddings: ten tensors."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embeddings.word_embeddings.weight": (11, 4), "norm.weight": (4,), "norm.bias": (4,)}
    for layer in range(2):
        shapes |= {f"layer.{layer}.attn.weight": (4, 4), f"layer.{layer}.attn.scale": (4,)}
        shapes |= {f"layer.{layer}.mlp.weight": (6, 4)}
    return {prefix + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def aligned(base: State, *models: State, **options):
    return align(from_state_dict(base), {f"m{n}": from_state_dict(m) for n, m in enumerate(models)}, **options)


def assert_fits(found, base: State, expected: list[State]) -> None:
    """Everything fits, and each model's values stand under the base's names."""
    check_mergeable(found.base, found.models)
    for model, state in zip(found.models.values(), expected, strict=True):
        for name in found.base.tensors:
            assert torch.equal(model.read(name), state[name])


def test_equal_names_change_nothing() -> None:
    base, one = body(0), body(1)
    found = aligned(base, one)
    assert_fits(found, base, [one])
    assert (found.heads, found.notes) == ({}, ())


@pytest.mark.parametrize(("ours", "theirs"), [("", "transformer."), ("bert.", ""), ("", "module."), ("a.b.", "")])
def test_a_prefix_is_no_difference(ours: str, theirs: str) -> None:
    base = body(0, ours)
    found = aligned(base, body(1, theirs), body(2, ours))
    assert_fits(found, base, [body(1, ours), body(2, ours)])


def test_old_names_of_layer_norms() -> None:
    base = {
        name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta"): t for name, t in body(0).items()
    }
    one = body(1)
    found = aligned(base, one)
    check_mergeable(found.base, found.models)
    assert torch.equal(found.models["m0"].read("norm.gamma"), one["norm.weight"])
    assert torch.equal(found.models["m0"].read("norm.beta"), one["norm.bias"])


def test_heads_absent_from_the_base_are_kept_apart() -> None:
    base = body(0)
    states = [body(n, "enc.") | {"score.weight": torch.full((n + 1, 4), float(n))} for n in (1, 2)]
    found = aligned(base, *states)
    assert_fits(found, base, [body(1), body(2)])
    assert set(found.heads) == {"m0", "m1", BASE_HEAD}
    assert list(found.heads["m1"].checkpoint.tensors) == ["score.weight"]
    assert torch.equal(found.heads["m1"].checkpoint.read("score.weight"), states[1]["score.weight"])
    assert found.heads["m1"].body["enc.norm.weight"] == "norm.weight"
    assert not found.heads[BASE_HEAD].checkpoint.tensors
    assert any("'m0' keeps a head of its own: 'score.weight'" in note for note in found.notes)


def test_heads_of_other_shape_are_kept_apart_with_their_whole_module() -> None:
    base = body(0) | {"classifier.weight": torch.zeros(7, 4), "classifier.bias": torch.zeros(7)}
    one = body(1) | {"classifier.weight": torch.ones(3, 4), "classifier.bias": torch.ones(3)}
    two = body(2) | {"classifier.weight": torch.ones(7, 4), "classifier.bias": torch.ones(7)}
    found = aligned(base, one, two)
    assert_fits(found, base, [body(1), body(2)])
    assert set(found.base.tensors) == set(body(0))
    for head, rows in (("m0", 3), ("m1", 7), (BASE_HEAD, 7)):
        assert found.heads[head].checkpoint.tensors["classifier.weight"].shape == (rows, 4)
        assert set(found.heads[head].checkpoint.tensors) == {"classifier.weight", "classifier.bias"}


def test_heads_of_one_shape_are_merged_unless_their_classes_differ(tmp_path: Path) -> None:
    names = ({"0": "cat", "1": "dog"}, {"0": "dog", "1": "cat"})
    opened: list[Checkpoint] = []
    for n, labels in enumerate((names[0], names[0], names[1])):
        folder = tmp_path / str(n)
        folder.mkdir()
        save_file(body(n) | {"classifier.weight": torch.full((2, 4), float(n))}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"id2label": labels}))
        opened.append(open_checkpoint(folder, home=tmp_path))
    base, same, other = opened
    assert align(base, {"a": base, "b": same}).heads == {}
    found = align(base, {"a": same, "b": other})
    assert set(found.heads) == {"a", "b", BASE_HEAD}
    assert "classifier.weight" not in found.base.tensors
    assert align(base, {"a": same, "b": other}, heads="merge").heads == {}


def test_heads_by_pattern() -> None:
    base = body(0) | {"layer_out.weight": torch.zeros(2, 4)}
    one = body(1) | {"layer_out.weight": torch.ones(2, 4)}
    assert "layer_out.weight" in aligned(base, one).base.tensors
    found = aligned(base, one, heads=["layer_out.*"])
    assert "layer_out.weight" not in found.base.tensors
    assert torch.equal(found.heads["m0"].checkpoint.read("layer_out.weight"), one["layer_out.weight"])


def test_a_missing_tower_is_the_bases() -> None:
    vision, text = body(1, "vision_model."), body(2, "text_model.")
    base = vision | text | {"visual_projection.weight": torch.ones(3, 4), "logit_scale": torch.tensor(2.0)}
    one = body(3, "vision_model.")
    found = aligned(base, one)
    assert_fits(found, base, [base | one])
    assert any("'logit_scale', 'text_model', 'visual_projection'" in note for note in found.notes)


@pytest.mark.parametrize("lost", ["norm.bias", "layer.1.mlp.weight", "norm.weight"])
def test_a_single_missing_tensor_is_an_error(lost: str) -> None:
    one = body(1)
    del one[lost]
    found = aligned(body(0), one)
    with pytest.raises(InputError, match=f"lacks '{lost}'"):
        check_mergeable(found.base, found.models)


def test_an_extra_layer_is_an_error() -> None:
    found = aligned(body(0), body(1) | {"layer.2.mlp.weight": torch.ones(6, 4)})
    with pytest.raises(InputError, match=r"has 'layer\.2\.mlp\.weight' which the base lacks"):
        check_mergeable(found.base, found.models)


def test_nothing_in_common_is_an_error() -> None:
    other = {f"block.{n}.w": torch.ones(3) for n in range(12)}
    found = aligned(body(0), other)
    with pytest.raises(InputError, match="another architecture"):
        check_mergeable(found.base, found.models)


def test_buffers_may_be_missing_or_extra() -> None:
    mask = torch.tril(torch.ones(3, 3)).view(1, 1, 3, 3)
    base = body(0) | {"layer.0.attn.bias": mask, "embeddings.position_ids": torch.arange(3)}
    one = body(1) | {"layer.0.attn.masked_bias": torch.tensor(-1e4), "rotary.inv_freq": torch.ones(2)}
    found = aligned(base, one)
    assert_fits(found, base, [base | one])
    bias = body(1) | {"layer.0.attn.bias": torch.ones(4)}
    extra = aligned(body(0), bias)
    with pytest.raises(InputError, match=r"attn\.bias"):  # a vector of that name is a parameter
        check_mergeable(extra.base, extra.models)


def test_tied_tensors_follow_their_original() -> None:
    base = body(0)
    base["lm_head.weight"] = base["embeddings.word_embeddings.weight"].clone()
    one = body(1)
    found = aligned(base, one)  # stored twice in the base, once in the model
    assert_fits(found, base, [one | {"lm_head.weight": one["embeddings.word_embeddings.weight"]}])
    double = body(2) | {"lm_head.weight": body(2)["embeddings.word_embeddings.weight"]}
    found = aligned(body(0), double)  # and the other way round
    assert_fits(found, body(0), [body(2)])
    assert found.heads == {}


@pytest.mark.parametrize("rows", [9, 13])
def test_vocabularies_of_other_size(rows: int) -> None:
    one = body(1) | {
        "embeddings.word_embeddings.weight": torch.randn(rows, 4, generator=torch.Generator().manual_seed(5))
    }
    refused = aligned(body(0), one)
    with pytest.raises(InputError, match=r"\[11, 4\] in the base") as caught:
        check_mergeable(refused.base, refused.models)
    assert "vocabulary: common" in str(caught.value.hint)
    found = aligned(body(0), one, vocabulary="common")
    check_mergeable(found.base, found.models)
    common = min(rows, 11)
    read = found.models["m0"].read("embeddings.word_embeddings.weight")
    assert torch.equal(read[:common], one["embeddings.word_embeddings.weight"][:common])
    assert torch.equal(read[common:], body(0)["embeddings.word_embeddings.weight"][common:])
    assert any(f"has {rows} rows" in note for note in found.notes)


def test_fingerprints_follow_content_and_not_names(tmp_path: Path) -> None:
    base, one = body(0), body(1)
    plain = aligned(base, one)
    prefixed = aligned(base, body(1, "model."))
    assert plain.models["m0"].fingerprint() == prefixed.models["m0"].fingerprint()
    assert plain.models["m0"].fingerprint() != aligned(base, body(2)).models["m0"].fingerprint()
    matrix = build_task_matrix(tmp_path, prefixed.base, prefixed.models)
    for name, tensor in matrix.named(matrix.merge([1.0])).items():
        torch.testing.assert_close(tensor, one[name])
