"""Eight LoRA adapters of rank 16 over a base shaped like a Llama of 1.2 B parameters: storage, memory, correctness.

The base is bfloat16 and random. The task matrix must be about the base and the adapters; stored as differences in full
it would be the base nine times. The merge is compared with the expanded computation on some tensors of each kind.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # also when run as a script

from benchmarks.tables import write_table
from mergecore.checkpoints.adapters import read_adapter
from mergecore.checkpoints.alignment import align
from mergecore.checkpoints.checkpoint import Checkpoint, TensorInfo, open_checkpoint, write_safetensors
from mergecore.task_matrix import open_task_matrix
from mergecore.task_vectors import build_task_matrix

ADAPTERS, RANK, LAYERS, HIDDEN, INNER, HEADS_OUT, VOCABULARY = 8, 16, 16, 2048, 8192, 512, 128_256
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HEADS_OUT, HIDDEN),
    "self_attn.v_proj": (HEADS_OUT, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
COEFFICIENTS = np.linspace(0.1, 0.8, ADAPTERS)


def write_base(folder: Path) -> None:
    """The base's file, one random tensor in memory at a time."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in MODULES.items()}
    folder.mkdir()
    infos = {name: TensorInfo(shape, torch.bfloat16) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", infos, lambda name: 0.02 * torch.randn(shapes[name]))


def write_adapter(folder: Path) -> None:
    """An adapter of every linear layer, as PEFT writes it."""
    factors = {}
    for layer in range(LAYERS):
        for name, (rows, cols) in MODULES.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            factors[f"{prefix}.lora_A.weight"] = 0.05 * torch.randn(RANK, cols)
            factors[f"{prefix}.lora_B.weight"] = 0.05 * torch.randn(rows, RANK)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}))


def merge(folder: str) -> None:
    """In a process of its own: merge three candidates and print seconds and peak memory."""
    matrix = open_task_matrix(Path(folder))
    out_P = matrix.new_candidate(torch.bfloat16)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        matrix.merge(COEFFICIENTS, out=out_P)
        times.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": min(times), "peak": peak, "candidate": out_P.nbytes}))


def expanded_error(folder: Path, base: Checkpoint, adapters: dict[str, Checkpoint]) -> float:
    """Largest relative difference from base + sum of c · scale · B A, computed in full, over one layer."""
    matrix = open_task_matrix(folder)
    merged = matrix.named(matrix.merge(COEFFICIENTS))
    worst = 0.0
    for name in (f"model.layers.3.{module}.weight" for module in MODULES):
        expected = base.read(name).float()
        for c, adapter in zip(COEFFICIENTS, adapters.values(), strict=True):
            update = read_adapter(adapter).update(name, base.tensors[name])
            expected += float(c) * update.scale * (update.left() @ update.right())
        worst = max(worst, float((merged[name] - expected).abs().max() / expected.abs().max()))
    return worst


def main() -> None:
    """Make the files, build the task matrix, merge in a fresh process."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_base(folder / "base")
        for n in range(ADAPTERS):
            write_adapter(folder / f"adapter{n}")
        base = open_checkpoint(folder / "base", home=folder)
        adapters = {f"a{n}": open_checkpoint(folder / f"adapter{n}", home=folder) for n in range(ADAPTERS)}
        aligned = align(base, adapters)
        begun = time.perf_counter()
        matrix = build_task_matrix(folder / "matrix", aligned.base, aligned.models)
        built = time.perf_counter() - begun
        place = folder / "matrix" / matrix.key
        stored = sum(file.stat().st_size for file in place.iterdir())
        sizes = [sum(file.stat().st_size for file in (folder / name).iterdir()) for name in ("base", "adapter0")]
        command = [sys.executable, __file__, str(place)]
        child = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        row = {
            "base GB": sizes[0] / 1e9,
            "adapters GB": ADAPTERS * sizes[1] / 1e9,
            "task matrix GB": stored / 1e9,
            "task matrix / (base + adapters)": stored / (sizes[0] + ADAPTERS * sizes[1]),
            "differences in full GB": (1 + ADAPTERS) * sizes[0] / 1e9,
            "build s": built,
            "merge s": child["seconds"],
            "peak GB of a merging process": child["peak"] / 1e9,
            "of it the candidate GB": child["candidate"] / 1e9,
            "largest difference from the expanded merge": expanded_error(place, base, adapters),
        }
    note = f"{ADAPTERS} adapters of rank {RANK} on every linear layer; base and candidate bfloat16, factors float32."
    write_table("low_rank", [row], note=note)


if __name__ == "__main__":
    merge(sys.argv[1]) if len(sys.argv) > 1 else main()
