"""The merge kernel against a plain copy of the same bytes, and against a loop over state dicts.

N = 8 task vectors of 88 million float32 (CLIP ViT-B/32's size): one candidate reads the base and 8 vectors and writes
one, so a copy that reads and writes as many bytes is the bound. Target: at least 0.8 of the copy's rate.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.tables import write_table
from mergecore.task_matrix import Entry, Layout, TaskMatrix

MODELS, PARAMETERS, ROUNDS = 8, 88_000_000, 7


def seconds(*actions: Callable[[], object]) -> list[float]:
    """Median time of each action, taken in turns so that a drifting machine is fair to all."""
    for action in actions:
        action()
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(ROUNDS):
        for action, taken in zip(actions, times, strict=True):
            begun = time.perf_counter()
            action()
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    """Measure with one thread and with two, print and store the table."""
    tensors = 80
    size = PARAMETERS // tensors
    entries = tuple(Entry(f"w{i}", (size,), torch.float32, i * size) for i in range(tensors))
    layout = Layout(tuple(f"m{n}" for n in range(MODELS)), entries, tuple(range(MODELS)))
    length = layout.length
    base, deltas = torch.randn(length), torch.randn(MODELS, length)
    matrix = TaskMatrix(layout, base, deltas, {}, {}, "benchmark")
    out = matrix.new_candidate()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    c = torch.rand(MODELS).numpy()
    matrix.merge(c, out=out)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    moved = 4 * length * (MODELS + 2)
    source = deltas.view(-1)[: moved // 8]
    target = torch.empty_like(source)
    state = {entry.name: base[entry.offset : entry.offset + entry.size] for entry in entries}
    vectors = [{e.name: deltas[n, e.offset : e.offset + e.size] for e in entries} for n in range(MODELS)]

    def loop() -> None:
        merged = {name: tensor.clone() for name, tensor in state.items()}
        for weight, vector in zip(c.tolist(), vectors, strict=True):
            merged = {name: tensor + weight * vector[name] for name, tensor in merged.items()}

    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        copy, kernel, naive = seconds(lambda: target.copy_(source), lambda: matrix.merge(c, out=out), loop)
        rows.append(
            {
                "threads": threads,
                "copy GB/s": moved / copy / 1e9,
                "kernel GB/s": moved / kernel / 1e9,
                "kernel / copy": copy / kernel,
                "loop / kernel (time)": naive / kernel,
                "kernel s": kernel,
                "extra memory, candidates": grown / (4 * length),
            }
        )
    write_table(
        "merge_kernel", rows, note="8 x 88 M float32; target kernel / copy >= 0.8; extra memory beside the output."
    )


if __name__ == "__main__":
    main()
