"""Batches cover every example once, in order, whatever runs out of memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergecore.errors import InputError
from mergecore.evaluators.batching import LARGEST, Batcher

CPU = torch.device("cpu")
EXHAUSTED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError("Unable to allocate 8 GiB"),
]


@given(count=st.integers(0, 70), size=st.integers(1, 40), fits=st.integers(1, 50))
def test_covers_every_example_once_in_order(count: int, size: int, fits: int) -> None:
    batcher = Batcher(size, example_bytes=0, device=CPU)

    def function(start: int, stop: int) -> list[int]:
        if stop - start > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return list(range(start, stop))

    found = batcher.map(count, function)
    assert [example for batch in found for example in batch] == list(range(count))
    assert min(size, (fits + 1) // 2) <= batcher.size <= size


@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: str(error)[:20])
def test_halves_and_remembers(error: Exception) -> None:
    batcher = Batcher(8, example_bytes=0, device=CPU)
    tried: list[tuple[int, int]] = []

    def function(start: int, stop: int) -> None:
        tried.append((start, stop))
        if stop - start > 3:
            raise error

    batcher.map(8, function)
    assert tried == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8)]
    tried.clear()
    batcher.map(3, function)
    assert tried == [(0, 2), (2, 3)]


def test_a_real_allocation_that_fails() -> None:
    batcher = Batcher(4, example_bytes=0, device=CPU)
    found = batcher.map(4, lambda start, stop: len(torch.empty((stop - start - 1) << 58, dtype=torch.uint8)) + 1)
    assert found == [1, 1, 1, 1]


def test_one_example_that_does_not_fit_is_an_input_error() -> None:
    def function(start: int, stop: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(InputError, match=r"'cpu' is too small for a batch of one example"):
        Batcher(4, example_bytes=0, device=CPU).map(9, function)


def test_other_errors_pass() -> None:
    def function(*_: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    batcher = Batcher(4, example_bytes=0, device=CPU)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        batcher.map(9, function)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        batcher.retry(function)


def test_work_with_batches_of_its_own_starts_again_with_half_the_size() -> None:
    batcher = Batcher(8, example_bytes=0, device=CPU)
    tried: list[int] = []

    def function(size: int) -> int:
        tried.append(size)
        if size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return size

    fits = 3
    assert batcher.retry(function) == batcher.retry(function) == 2
    assert tried == [8, 4, 2, 2]
    fits = 0
    with pytest.raises(InputError, match=r"'cpu' is too small for a batch of one example"):
        batcher.retry(function)


@pytest.mark.parametrize(
    ("example_bytes", "device", "size"),
    [
        (3 * 224 * 224 * 4, "cpu", 32),
        (3 * 224 * 224 * 4, "cuda", 256),
        (3 * 32 * 32 * 4, "cpu", LARGEST),
        (1 << 40, "cpu", 1),
    ],
)
def test_the_automatic_size_follows_from_the_example_alone(example_bytes: int, device: str, size: int) -> None:
    assert Batcher("auto", example_bytes=example_bytes, device=torch.device(device)).size == size
