"""Batches that fit memory, whose size changes no result beyond float rounding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field

from mergecore.errors import InputError

BatchSize = Annotated[int, Field(ge=1)] | Literal["auto"]
"""Type of ``args.batch_size``: where to start; both kinds are halved when memory runs out."""

LARGEST = 512
INPUT_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""What the inputs of one automatic batch may take; activations take a multiple of it."""

MESSAGES = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""How libraries under torch say that there is no memory, in errors without a type of their own."""

Result = TypeVar("Result")


class Estimate:
    """Seconds that the batches of an evaluation would take, from one timed batch of each pass.

    Attributes:
        seconds: of all batches together.
        passes: how many passes they belong to.
        failed: whether the first batch of a pass raised something.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.passes = 0
        self.failed = False


_estimate: ContextVar[Estimate | None] = ContextVar("estimate", default=None)


@contextmanager
def estimating() -> Iterator[Estimate]:
    """Inside, evaluators compute one or two batches in the place of all, so what they measure means nothing."""
    found = Estimate()
    token = _estimate.set(found)
    try:
        yield found
    finally:
        _estimate.reset(token)


def is_estimating() -> bool:
    """Whether results are for timing only, and must not be kept."""
    return _estimate.get() is not None


class Batcher:
    """Calls a function for consecutive ranges of examples; halves the ranges when memory runs out.

    The automatic size is a power of two that follows from the bytes of one example and the kind of device alone, never
    from the memory that happens to be free. An instance remembers a size that was halved.

    Args:
        size: examples in a batch to start with, or "auto".
        example_bytes: of one example as the network gets it, or of its largest activation; for "auto".
        device: where batches are computed.
    """

    def __init__(self, size: int | Literal["auto"], *, example_bytes: int, device: torch.device) -> None:
        self.size = _automatic(example_bytes, device) if size == "auto" else size
        self._device = device

    def map(self, count: int, function: Callable[[int, int], Result]) -> list[Result]:
        """``function(start, stop)`` for ranges that cover ``range(count)`` in order.

        Args:
            count: number of examples.
            function: called again with a shorter range when it runs out of memory, so a call that raises must leave
                nothing behind.

        Raises:
            InputError: a single example does not fit.
        """
        estimate = _estimate.get()
        if estimate is not None and count:
            return self._one_for_all(count, function, estimate)
        results: list[Result] = []
        start = 0
        while start < count:
            stop = min(start + self.size, count)
            try:
                results.append(function(start, stop))
                start = stop
                continue
            except (RuntimeError, MemoryError) as error:
                self._refuse(error, stop - start)
            # only here, outside the handler, are the failed batch's tensors no longer held by the traceback
            self._halve(stop - start)
        return results

    def retry(self, function: Callable[[int], Result]) -> Result:
        """``function(size)``, for work that makes its own batches; from the start with half the size as in `map`."""
        while True:
            try:
                return function(self.size)
            except (RuntimeError, MemoryError) as error:
                self._refuse(error, self.size)
            self._halve(self.size)

    def _refuse(self, error: RuntimeError | MemoryError, tried: int) -> None:
        """Raise the error when smaller batches are no help."""
        if not is_out_of_memory(error):
            raise error
        if tried == 1:
            raise InputError(
                f"The memory of {str(self._device)!r} is too small for a batch of one example.",
                "Give each worker more of it ('execution.workers', 'execution.gpus_per_worker').",
            ) from error

    def _halve(self, tried: int) -> None:
        self.size = tried // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _one_for_all(self, count: int, function: Callable[[int, int], Result], estimate: Estimate) -> list[Result]:
        """The first batch, timed, in the place of every batch of its size."""
        token = _estimate.set(None)
        try:
            estimate.failed = True
            self.map(min(self.size, count), function)  # first use is slower, and finds the size that fits
            estimate.failed = False
            stop = min(self.size, count)
            begun = time.perf_counter()
            (first,) = self.map(stop, function)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            estimate.seconds += (time.perf_counter() - begun) * count / stop
            estimate.passes += 1
            rest = count % stop
            return [first] * (count // stop) + ([function(count - rest, count)] if rest else [])
        finally:
            _estimate.reset(token)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or device memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def _automatic(example_bytes: int, device: torch.device) -> int:
    fitting = INPUT_BYTES.get(device.type, INPUT_BYTES["cuda"]) // max(example_bytes, 1)
    return min(1 << (max(fitting, 1).bit_length() - 1), LARGEST)
