"""What transforms and data-free merges cost, in reads of the task matrix, at the size of CLIP's ViT-B/32.

The base is random, a fine-tuned model differs from it by a product of rank 16 and noise. Every transform changes a copy
of the task matrix in a process of its own, every merge writes its column in one; memory is what that process needs
beyond one that maps and reads the task matrix.
"""

from __future__ import annotations

import functools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # also when run as a script

from benchmarks.tables import write_table
from mergecore.checkpoints.checkpoint import Checkpoint, TensorInfo, open_checkpoint, write_safetensors
from mergecore.config_file import parse_config
from mergecore.merging import MERGES
from mergecore.merging.base import merge_study
from mergecore.study import Study
from mergecore.task_matrix import TaskMatrix, open_task_matrix
from mergecore.task_vectors import build_task_matrix, task_matrix_key
from mergecore.transforms import TRANSFORMS
from mergecore.transforms.base import apply, generator

MODELS, RANK, NOISE, READS = 8, 16, 1e-3, 9
FEWER = {"slerp": 2}
"""Number of models for methods that cannot take all."""
NOTE = f"""\
{MODELS} models (SLERP: 2) of 87 M float32, page cache warm, one thread. *One read* is the sum over the mapped task \
matrix of as many models, in the same process, the median of {READS}. The ratio is of processor time, which other work \
on the machine does not change. *Extra memory* is the peak of the process beyond that of one that only maps and reads \
the task matrix; a candidate is the size of one model. A transform works in place, a merge writes one \
more column, whose mapped pages count. Once made, the result is found by its content."""


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


def opened(folder: Path, count: int) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """The base and the first ``count`` models."""
    names = ("base", *(f"m{n}" for n in range(count)))
    found = {name: open_checkpoint(folder / f"{name}.safetensors", home=folder) for name in names}
    return found.pop("base"), found


def build(folder: Path, count: int, transform: str = "none") -> TaskMatrix:
    """The task matrix of the first ``count`` models, found or built."""
    base, models = opened(folder, count)
    prints = folder / "fingerprints"
    return build_task_matrix(folder / "matrices", base, models, transform=transform, fingerprints=prints)


def copied(folder: Path, count: int, transform: str) -> Path:
    """A copy of the task matrix as it is, where the transformed one will be looked for."""
    base, models = opened(folder, count)
    prints = [checkpoint.fingerprint(folder / "fingerprints") for checkpoint in (base, *models.values())]
    options = TRANSFORMS.get(transform).Options().model_dump()
    key = task_matrix_key(prints[0], prints[1:], transform=transform, options=options)
    return Path(shutil.copytree(folder / "matrices" / build(folder, count).key, folder / "matrices" / key))


def measure(place: Path, name: str) -> dict[str, float]:
    """In a process of its own: seconds of a method, of one read and of the same call again; peak memory in bytes.

    Args:
        place: the folder of a task matrix; a transform changes it.
        name: of a transform or a merge; "none" only maps and reads.
    """
    torch.set_num_threads(1)
    changes = name in TRANSFORMS and name != "none"
    matrix = open_task_matrix(place, writable=changes)
    count, folder, candidate = len(matrix.models), place.parents[1], matrix.base_P.nbytes
    read = processor_seconds_of_a_read(matrix)
    begun, busy = time.perf_counter(), time.process_time()
    if changes:
        cls = TRANSFORMS.get(name)
        apply(cls(cls.Options()), matrix)
    elif name in MERGES:
        study = study_over(matrix, place)
        del matrix  # the merge maps the same pages, which would count twice
        merge_study(study, name)
    seconds, processor = time.perf_counter() - begun, time.process_time() - busy
    peak = peak_memory()
    begun = time.perf_counter()
    if name in MERGES:
        merge_study(study, name)
    else:
        build(folder, count, name)
    return {
        "seconds": seconds,
        "processor": processor,
        "read": read,
        "again": time.perf_counter() - begun,
        "peak": peak,
        "candidate": candidate,
    }


def peak_memory() -> int:
    """Most bytes that this process ever had in memory.

    Not `resource.getrusage`: what that says of a new process begins with the peak of the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def processor_seconds_of_a_read(matrix: TaskMatrix) -> float:
    """Of the sum over all differences; the base is read too, but not timed."""
    matrix.base_P.sum()
    taken = []
    for _ in range(READS):
        begun = time.process_time()
        matrix.deltas_MD.sum()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def study_over(matrix: TaskMatrix, place: Path) -> Study:
    """As much of a study as merges without data look at."""
    models = [{"name": name, "source": f"{name}.safetensors"} for name in matrix.models]
    score = {"evaluator": "python", "metric": "score", "direction": "maximize", "args": {"function": "none:none"}}
    config = parse_config({"base": "base.safetensors", "models": models, "tasks": [{"name": "none", **score}]})
    return Study(config, place.parents[1], matrix.models, place, matrix.key, None, {}, (), "cpu", "float32", {})


def in_a_process(place: Path, name: str) -> dict[str, float]:
    """`measure`, in a process of its own."""
    command = [sys.executable, __file__, str(place), name]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    print(f"{name}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    return found


def row(method: str, count: int, found: dict[str, float], beside: dict[str, float]) -> dict[str, object]:
    """A line of the table; ``beside`` is of the process that only maps and reads."""
    extra = found["peak"] - beside["peak"]
    return {
        "method": method,
        "models": count,
        "s": found["seconds"],
        "processor s": found["processor"],
        "one read s": found["read"],
        "time / one read": found["processor"] / found["read"],
        "extra memory MB": extra / 1e6,
        "in candidates": extra / found["candidate"],
        "the same call again ms": 1e3 * found["again"],
    }


def main() -> None:
    """Write the models, measure each method, print and store the table."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder, MODELS)
        plain = {count: folder / "matrices" / build(folder, count).key for count in {MODELS, *FEWER.values()}}
        mapped = {count: in_a_process(place, "none") for count, place in plain.items()}
        for name in TRANSFORMS:
            if name != "none":
                place = copied(folder, MODELS, name)
                rows.append(row(f"transform {name}", MODELS, in_a_process(place, name), mapped[MODELS]))
                shutil.rmtree(place)
        for name in MERGES:
            if not MERGES.get(name).needs_data:
                count = FEWER.get(name, MODELS)
                rows.append(row(f"merge {name}", count, in_a_process(plain[count], name), mapped[count]))
    write_table("transform_cost", rows, note=NOTE)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
    else:
        main()
