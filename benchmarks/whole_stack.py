"""The whole stack against bare forward passes of the same work.

A vision transformer whose evaluation takes about 0.1 s on one thread. The stack is the flow `map` as a user runs it:
Prefect, Ray with two workers, ledger, MLflow, merging. The baseline is two plain processes that run the same forward
passes on fixed weights. Both are timed at two numbers of candidates; the slope is the cost of one candidate without
start-up and without what a run costs once. Target: stack / bare <= 1.10.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from benchmarks.tables import write_table

FEW, MANY, ROUNDS = 40, 240, 3
IMAGES = 160

BARE = """
import sys, time
import numpy as np, torch
from transformers import ViTForImageClassification
torch.set_num_threads(1)
module = ViTForImageClassification.from_pretrained(sys.argv[1]).eval()
images = torch.from_numpy(np.load(sys.argv[2])["x_test"])
with torch.inference_mode():
    module(images)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(sys.argv[3])):
        module(images).logits.argmax(1)
"""


def make_study(folder: Path) -> dict[str, object]:
    """A base, two models and data of random numbers, in the hub's format."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        image_size=32,
        patch_size=4,
        num_channels=3,
        num_labels=10,
    )
    torch.manual_seed(0)
    module = ViTForImageClassification(config)
    places = []
    for name in ("base", "a", "b"):
        places.append(str(folder / name))
        module.save_pretrained(places[-1])
        module.load_state_dict({key: t + 0.02 * torch.randn_like(t) for key, t in module.state_dict().items()})
    images = np.random.default_rng(0).normal(size=(IMAGES, 3, 32, 32)).astype(np.float32)
    np.savez(folder / "data.npz", x_test=images, y_test=np.arange(IMAGES) % 10)
    return {
        "name": "stack",
        "base": places[0],
        "models": [{"name": name, "source": source} for name, source in zip("ab", places[1:], strict=True)],
        "tasks": [{"name": "t", "dataset": {"path": str(folder / "data.npz")}, "args": {"batch_size": IMAGES}}],
        "front": {"verify": 0, "population": 20, "generations": 5},
        "execution": {"workers": 2},
    }


def run_stack(folder: Path, study: dict[str, object], count: int, seed: int) -> float:
    """Seconds of one run from a fresh home; the clock is the command's own, after the imports."""
    config = {**study, "search": {"method": "map", "samples": count, "seed": seed}}
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    home = tempfile.mkdtemp(dir=folder)
    environment = {**os.environ, "MERGECORE_HOME": home, "PREFECT_HOME": str(folder / "prefect")}
    begun = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", "run", str(folder / "study.yaml"), "--out", f"{home}/out"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def run_bare(folder: Path, count: int) -> float:
    """Seconds of the same forward passes in two plain processes, from the moment both are loaded."""
    command = [sys.executable, "-c", BARE, str(folder / "base"), str(folder / "data.npz"), str(count // 2)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for worker in workers:
        worker.stdout.readline()
    begun = time.perf_counter()
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        worker.wait()
    return time.perf_counter() - begun


def main() -> None:
    """Measure in turns, print and store the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        study = make_study(folder)
        run_stack(folder, study, FEW, 99)
        slopes: dict[str, list[float]] = {"stack": [], "bare": []}
        fixed = []
        for seed in range(ROUNDS):
            stack = [run_stack(folder, study, count, seed) for count in (FEW, MANY)]
            bare = [run_bare(folder, count) for count in (FEW, MANY)]
            for name, times in (("stack", stack), ("bare", bare)):
                slopes[name].append((times[1] - times[0]) / (MANY - FEW))
            fixed.append(stack[0] - slopes["stack"][-1] * FEW)
        ratios = [s / b for s, b in zip(slopes["stack"], slopes["bare"], strict=True)]
        rows = [
            {
                "bare, s a candidate": statistics.median(slopes["bare"]),
                "stack, s a candidate": statistics.median(slopes["stack"]),
                "stack / bare": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "start-up and end of a run, s": statistics.median(fixed),
            }
        ]
        write_table("whole_stack", rows, note="Two workers, one thread each; target stack / bare <= 1.10.")


if __name__ == "__main__":
    main()
