"""The merge kernel against the obvious loop over state dicts, and the rules of what is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import mergecore.task_matrix as kernel
from mergecore.checkpoints.checkpoint import from_state_dict, open_checkpoint
from mergecore.errors import InputError
from mergecore.task_matrix import TaskMatrix, open_task_matrix
from mergecore.task_vectors import build_task_matrix
from tests.conftest import random_state, write_checkpoint

State = dict[str, torch.Tensor]


def obvious_merge(base: State, models: list[State], coefficients: np.ndarray, block_of=lambda name: 0) -> State:
    """theta_pre + sum_n c_n (theta_n - theta_pre) in float64, tensor by tensor; integers from the base."""
    merged = {}
    for name, tensor in base.items():
        if not tensor.dtype.is_floating_point:
            merged[name] = tensor
            continue
        c = np.atleast_2d(coefficients)[block_of(name)]
        deltas = [float(c[n]) * (model[name].double() - tensor.double()) for n, model in enumerate(models)]
        merged[name] = tensor.double() + sum(deltas)
    return merged


def build(folder: Path, base: State, models: list[State], **options) -> TaskMatrix:
    named = {f"model{n}": from_state_dict(model) for n, model in enumerate(models)}
    return build_task_matrix(folder, from_state_dict(base), named, **options)


def assert_equal_to_rounding(found: State, expected: State, scale: float = 1.0) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.dtype.is_floating_point:
            assert found[name].dtype == torch.float32
            # every term is rounded once in float32: a few units in the last place of the largest term
            torch.testing.assert_close(found[name].double(), tensor, rtol=1e-6, atol=2e-6 * scale)
        else:
            assert torch.equal(found[name], tensor)


DTYPES = {
    "float32": {},
    "bfloat16": dict.fromkeys(random_state(0), torch.bfloat16),
    "float16": dict.fromkeys(random_state(0), torch.float16),
    "mixed": {"embed": torch.bfloat16, "layer.weight": torch.float16, "scale": torch.float64},
}


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("count", [2, 3, 8])
def test_equals_obvious_loop(tmp_path: Path, dtypes: dict[str, torch.dtype], count: int) -> None:
    base, *models = (random_state(seed, dtypes=dtypes) for seed in range(count + 1))
    matrix = build(tmp_path, base, models)
    c = np.random.default_rng(count).uniform(-1, 2, count)
    assert_equal_to_rounding(matrix.named(matrix.merge(c)), obvious_merge(base, models, c), scale=count)


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_half_storage_is_summed_in_float32(tmp_path: Path, storage: str) -> None:
    base, *models = (random_state(seed) for seed in range(9))
    matrix = build(tmp_path, base, models, storage=storage)
    dtype = getattr(torch, storage)
    assert matrix.deltas_MD.dtype == dtype
    rounded = [
        {name: base[name] + (t - base[name]).to(dtype).float() if t.is_floating_point() else t for name, t in m.items()}
        for m in models
    ]
    c = np.linspace(-0.5, 1.0, 8)
    assert_equal_to_rounding(matrix.named(matrix.merge(c)), obvious_merge(base, rounded, c), scale=8)


def test_many_tiles_and_threads_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    states = [
        {"big": torch.randn(3 * kernel.TILE + 17, generator=generator), "small": torch.randn(3)} for _ in range(4)
    ]
    matrix = build(tmp_path, states[0], states[1:])
    c = np.array([0.3, -0.2, 0.9])
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(matrix.merge(c).clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert_equal_to_rounding(matrix.named(results[0]), obvious_merge(states[0], states[1:], c), scale=4)


def test_base_and_single_models_come_back(tmp_path: Path) -> None:
    base, first, second = (random_state(seed) for seed in range(3))
    matrix = build(tmp_path, base, [first, second])
    zero = matrix.named(matrix.merge([0.0, 0.0]))
    assert all(torch.equal(zero[name], tensor) for name, tensor in base.items())
    one = matrix.named(matrix.merge([0.0, 1.0]))
    assert_equal_to_rounding(one, obvious_merge(base, [first, second], np.array([0.0, 1.0])))


def test_one_buffer_serves_many_candidates(tmp_path: Path) -> None:
    base, first, second = (random_state(seed) for seed in range(3))
    matrix = build(tmp_path, base, [first, second])
    out = matrix.new_candidate()
    views = matrix.named(out)
    for c in ([0.1, 0.2], [0.9, -0.4]):
        assert matrix.merge(c, out=out) is out
        assert_equal_to_rounding(views, obvious_merge(base, [first, second], np.array(c)))


def test_half_precision_candidate_is_the_rounded_sum(tmp_path: Path) -> None:
    base, first, second = (random_state(seed) for seed in range(3))
    matrix = build(tmp_path, base, [first, second])
    exact = matrix.merge([0.3, 0.6])
    half = matrix.merge([0.3, 0.6], out=matrix.new_candidate(torch.bfloat16))
    assert torch.equal(half, exact.to(torch.bfloat16))


def test_blocks_use_their_own_row(tmp_path: Path) -> None:
    base, first, second = (random_state(seed) for seed in range(3))
    matrix = build(tmp_path, base, [first, second])
    blocks = matrix.layout.blocks(lambda name: "layer" if name.startswith("layer") else "rest")
    assert blocks.names == ("rest", "layer")
    c_GN = np.array([[0.1, 0.9], [-0.5, 0.4]])
    found = matrix.named(matrix.merge(c_GN, blocks=blocks))
    expected = obvious_merge(base, [first, second], c_GN, lambda name: int(name.startswith("layer")))
    assert_equal_to_rounding(found, expected)


@given(
    c=arrays(np.float64, (2, 3), elements=st.floats(-2, 2, width=32)),
    weight=st.floats(0, 1, width=32),
)
@settings(max_examples=30, deadline=None)
def test_merging_is_affine_in_the_coefficients(tmp_path_factory, c: np.ndarray, weight: float) -> None:
    base, *models = (random_state(seed) for seed in range(4))
    matrix = build(tmp_path_factory.mktemp("affine"), base, models)
    mixed = matrix.merge(weight * c[0] + (1 - weight) * c[1])
    separate = weight * matrix.merge(c[0]) + (1 - weight) * matrix.merge(c[1])
    torch.testing.assert_close(mixed, separate, rtol=1e-4, atol=5e-5)


def test_frozen_tied_and_integer_tensors(tmp_path: Path) -> None:
    base, first, second = (random_state(seed) for seed in range(3))
    for state in (first, second):
        state["embed"] = base["embed"].clone()  # frozen
    for state in (base, first, second):
        state["head"] = state["layer.weight"].clone()  # tied
    first["steps"] = torch.tensor([9, 9])
    matrix = build(tmp_path, base, [first, second])
    assert [entry.name for entry in matrix.layout.entries] == ["layer.weight", "layer.bias", "scale", "odd"]
    assert matrix.layout.entries[0].tied == ("head",)
    assert set(matrix.frozen) == {"embed", "steps"}
    merged = matrix.named(matrix.merge([0.5, 0.5]))
    assert_equal_to_rounding(merged, obvious_merge(base, [first, second], np.array([0.5, 0.5])))
    assert merged["head"].data_ptr() == merged["layer.weight"].data_ptr()
    assert torch.equal(merged["steps"], base["steps"])


def test_one_model_identical_to_the_base(tmp_path: Path) -> None:
    base, first = random_state(0), random_state(1)
    matrix = build(tmp_path, base, [first, {name: tensor.clone() for name, tensor in base.items()}])
    a, b = matrix.merge([0.4, 0.0]).clone(), matrix.merge([0.4, 7.0])
    assert torch.equal(a, b)


def test_nothing_to_merge_is_an_error(tmp_path: Path) -> None:
    base = random_state(0)
    with pytest.raises(InputError, match="identical to the base"):
        build(tmp_path, base, [dict(base), dict(base)])


def test_mapped_again_from_disk_under_its_content_key(tmp_path: Path) -> None:
    base, first, second = (random_state(seed) for seed in range(3))
    files = [write_checkpoint(tmp_path / f"{n}.safetensors", s) for n, s in enumerate((base, first, second))]
    opened = [open_checkpoint(file, home=tmp_path) for file in files]
    named = {"a": opened[1], "b": opened[2]}
    built = build_task_matrix(tmp_path / "m", opened[0], named, fingerprints=tmp_path / "prints")
    stamp = (tmp_path / "m" / built.key / "deltas.bin").stat().st_mtime_ns
    again = build_task_matrix(tmp_path / "m", opened[0], {"x": opened[1], "y": opened[2]})
    assert again.key == built.key
    assert again.models == ("x", "y")
    assert (tmp_path / "m" / built.key / "deltas.bin").stat().st_mtime_ns == stamp
    mapped = open_task_matrix(tmp_path / "m" / built.key)
    assert torch.equal(mapped.merge([0.2, 0.7]), built.merge([0.2, 0.7]))


def test_key_follows_content(tmp_path: Path) -> None:
    base, first, second = (random_state(seed) for seed in range(3))
    key = build(tmp_path, base, [first, second]).key
    assert build(tmp_path, base, [second, first]).key != key
    assert build(tmp_path, base, [first, second], storage="bfloat16").key != key
    changed = {name: tensor.clone() for name, tensor in second.items()}
    changed["odd"].view(-1)[0] += 1e-6
    assert build(tmp_path, base, [first, changed]).key != key


def test_streams_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []
    peak = 0
    base, first, second = (random_state(seed) for seed in range(3))

    class Counted(dict):
        """A state dict that hands out copies and counts how many are alive."""

        def __getitem__(self, name: str) -> torch.Tensor:
            nonlocal peak
            import weakref

            copy = super().__getitem__(name).clone()
            alive.append(1)
            weakref.finalize(copy, alive.pop)
            peak = max(peak, len(alive))
            return copy

    named = {"a": from_state_dict(Counted(first)), "b": from_state_dict(Counted(second))}
    build_task_matrix(tmp_path, from_state_dict(Counted(base)), named)
    assert peak <= 2  # one of the base, one of a model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("odd"), "lacks 'odd'"),
        (lambda s: s.update(extra=torch.ones(1)), "has 'extra' which the base lacks"),
        (lambda s: s.update(embed=torch.ones(8, 5)), r"'embed' has the shape \[8, 5\] in the model 'model1'"),
        (lambda s: s.update(embed=torch.ones(7, 5, dtype=torch.int64)), "'embed' is int64"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change, message: str) -> None:
    base, first, second = (random_state(seed) for seed in range(3))
    change(second)
    with pytest.raises(InputError, match=message):
        build(tmp_path, base, [first, second])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [[0.1], [0.1, 0.2, 0.3], [[0.1, 0.2]], [0.1, float("nan")], [0.1, float("inf")]])
def test_bad_coefficients(tmp_path: Path, bad: list[float]) -> None:
    matrix = build(tmp_path, *(lambda s: (s[0], s[1:]))([random_state(seed) for seed in range(3)]))
    with pytest.raises(InputError):
        matrix.merge(bad)
