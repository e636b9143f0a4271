"""What transforms and data-free merges cost, in reads of the task matrix, at the size of CLIP's ViT-B/32.

The base is random, a fine-tuned model differs from it by a product of rank 16 and noise. Every transform and merge is
made by a process of its own, in the way a study makes it: its time is that of its own pass over the tensors, and its
memory what it adds to the peak of a process that does all the rest.
"""

from __future__ import annotations

import functools
import itertools
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # also when run as a script

from benchmarks.tables import write_table
from mergecore.checkpoints import TensorInfo, open_checkpoint, write_safetensors
from mergecore.config import parse_config
from mergecore.merging import MERGES
from mergecore.merging.base import merge_study
from mergecore.study import Study
from mergecore.task_matrix import TaskMatrix
from mergecore.task_vectors import build_task_matrix
from mergecore.transforms import TRANSFORMS
from mergecore.transforms.base import generator

MODELS, RANK, NOISE, THREADS, READS = 8, 16, 1e-3, 2, 9
FEWER = {"slerp": 2}
"""Number of models for methods that cannot take all."""
NOTE = f"""\
{MODELS} models (SLERP: 2) of 87 M float32, page cache warm, {THREADS} threads. *One read* is the sum over the mapped \
task matrix of as many models, in the same process, the median of {READS}. Time is that of the method's pass over the \
tensors, before the files are flushed; *processor s* counts all threads and not what other processes take. *Extra \
memory*: the peak of the process beyond that of one that only builds the task matrix (transforms, which change it in \
place) or only maps and reads it (merges, which write one more column, mapped like the others); a candidate is the \
size of one model. Once made, the result is found by its content."""


def write_models(folder: Path, count: int) -> None:
    """The base and the fine-tuned models, one random tensor in memory at a time."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        network = CLIPVisionModel(CLIPVisionConfig())  # ViT-B/32 by default
    infos = {name: TensorInfo(tuple(tensor.shape), torch.float32) for name, tensor in network.named_parameters()}

    def base(name: str) -> torch.Tensor:
        return 0.02 * torch.randn(infos[name].shape, generator=generator(0, "base", name))

    def tuned(model: int, name: str) -> torch.Tensor:
        draw, shape = generator(0, model, name), infos[name].shape
        delta = torch.randn(shape, generator=draw)
        if len(shape) == 2:
            delta += torch.randn(shape[0], RANK, generator=draw) @ torch.randn(RANK, shape[1], generator=draw)
        return base(name) + NOISE * delta

    write_safetensors(folder / "base.safetensors", infos, base)
    for model in range(count):
        write_safetensors(folder / f"m{model}.safetensors", infos, functools.partial(tuned, model))


class Clock:
    """A callback of progress that keeps when each tensor was done, by the wall and by the processor."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float]] = []

    def __call__(self, done: int, count: int) -> None:
        self.ticks.append((time.perf_counter(), time.process_time()))

    def since(self, tick: int) -> tuple[float, float]:
        """Seconds of wall and processor time from a tick to the last one."""
        (begun, busy), (ended, spent) = self.ticks[tick], self.ticks[-1]
        return ended - begun, spent - busy


def build(place: Path, count: int, transform: str = "none", progress: Clock | None = None) -> TaskMatrix:
    """The task matrix of the first ``count`` models beside the folder ``place``, found there or built."""
    folder = place.parent
    names = ("base", *(f"m{n}" for n in range(count)))
    opened = {name: open_checkpoint(folder / f"{name}.safetensors", home=folder) for name in names}
    base, prints = opened.pop("base"), folder / "fingerprints"
    return build_task_matrix(place, base, opened, transform=transform, fingerprints=prints, progress=progress)


def measure_transform(folder: Path, name: str, count: int) -> dict[str, float]:
    """Seconds of a transform's pass, of one read and of the same call again; peak memory of this process in bytes."""
    torch.set_num_threads(THREADS)
    clock = Clock()
    matrix = build(folder / "transformed", count, name, clock)
    read = seconds_of_a_read(matrix)
    # every tensor is written, then every tensor is transformed
    passed = clock.since(len(clock.ticks) // 2 - 1)
    return figures(matrix, passed, read, lambda: build(folder / "transformed", count, name))


def measure_merge(folder: Path, name: str, count: int) -> dict[str, float]:
    """The same of a merge; of a process that only maps and reads the task matrix when ``name`` is empty."""
    torch.set_num_threads(THREADS)
    clock = Clock()
    matrix = build(folder / "plain", count)
    read = seconds_of_a_read(matrix)
    models = [{"name": model, "source": f"{model}.safetensors"} for model in matrix.models]
    task = {"name": "none", "evaluator": "python", "metric": "score", "args": {"function": "none:none"}}
    config = parse_config({"base": "base.safetensors", "models": models, "tasks": [task]})
    # as much of a study as merges without data look at
    place = folder / "plain" / matrix.key
    study = Study(config, folder, matrix.models, place, matrix.key, None, {}, (), "cpu", "float32", {})
    clock(0, 0)
    if name:
        merge_study(study, name, progress=clock)
    return figures(matrix, clock.since(0), read, lambda: merge_study(study, name) if name else None)


def seconds_of_a_read(matrix: TaskMatrix) -> float:
    """The sum over all differences: the median of some, as busy as the machine is; and over the base, unmeasured."""
    matrix.base_P.sum()
    clock = Clock()
    for done in range(READS + 1):
        matrix.deltas_MD.sum()
        clock(done, READS)
    walls = [wall for wall, _ in clock.ticks]
    return statistics.median(after - before for before, after in itertools.pairwise(walls))


def figures(
    matrix: TaskMatrix, passed: tuple[float, float], read: float, again: Callable[[], object]
) -> dict[str, float]:
    """What a process that measures prints."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begun = time.perf_counter()
    again()
    cached = time.perf_counter() - begun
    seconds, processor = passed
    return {
        "seconds": seconds,
        "processor": processor,
        "read": read,
        "cached": cached,
        "peak": peak,
        "candidate": matrix.base_P.nbytes,
    }


def in_a_process(kind: str, folder: Path, name: str, count: int) -> dict[str, float]:
    """`measure_<kind>` in a process of its own."""
    command = [sys.executable, __file__, kind, str(folder), name, str(count)]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    shutil.rmtree(folder / "transformed", ignore_errors=True)
    return found


def row(method: str, found: dict[str, float], beside: dict[str, float], count: int) -> dict[str, object]:
    """A line of the table; ``beside`` is of the process that does all but the method's pass."""
    extra = found["peak"] - beside["peak"]
    print(f"{method}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    return {
        "method": method,
        "models": count,
        "s": found["seconds"],
        "processor s": found["processor"],
        "one read s": found["read"],
        "time / one read": found["seconds"] / found["read"],
        "extra memory MB": extra / 1e6,
        "in candidates": extra / found["candidate"],
        "the same call again ms": 1e3 * found["cached"],
    }


def main() -> None:
    """Write the models, measure each method in a process of its own, print and store the table."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder, MODELS)
        for count in {MODELS, *FEWER.values()}:
            build(folder / "plain", count)
        untransformed = in_a_process("transform", folder, "none", MODELS)
        for name in TRANSFORMS:
            if name != "none":
                found = in_a_process("transform", folder, name, MODELS)
                rows.append(row(f"transform {name}", found, untransformed, MODELS))
        for name in MERGES:
            if not MERGES.get(name).needs_data:
                count = FEWER.get(name, MODELS)
                mapped, found = (in_a_process("merge", folder, which, count) for which in ("", name))
                rows.append(row(f"merge {name}", found, mapped, count))
    write_table("transform_cost", rows, note=NOTE)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        kind, folder, name, count = sys.argv[1:]
        function = {"transform": measure_transform, "merge": measure_merge}[kind]
        print(json.dumps(function(Path(folder), name, int(count))))
    else:
        main()
