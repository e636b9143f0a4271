"""A step of PWE-MoE against a full multi-task step of the same batch: time and memory, on a ViT-B/32.

Random weights and pictures; two fine-tuned models, two tasks with 16 pictures each. The full step trains every weight
with Adam: a forward and a backward pass for each task, gradients added up (linear scalarisation) or kept apart (exact
Pareto search, which needs their inner products). Each kind runs in processes of its own, in turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # also when run as a script

from benchmarks.tables import write_table
from mergecore.config import StudyConfig
from mergecore.config_file import parse_config
from mergecore.pareto_moe.losses import RoutedLosses, batches, gather
from mergecore.pareto_moe.routed_study import new_training, route
from mergecore.pareto_moe.scalarisation import SCALARISATIONS
from mergecore.study import Study, prepare

MODELS, BATCH, STEPS, TURNS, THREADS = 2, 16, 4, 2, 2


@dataclass(frozen=True)
class Kind:
    """One way to make a step; a full one trains every weight, the others the routers of some modules."""

    scalarisation: str = "ls"
    modules: str = ""
    precision: str = "float32"
    storage: str = "float32"
    twice: bool = False

    @property
    def full(self) -> str:
        """The full step that it is compared with."""
        plain = Kind(self.scalarisation, precision=self.precision)
        return next(name for name, kind in KINDS.items() if kind == plain)


KINDS = {
    "full, LS": Kind(),
    "PWE-MoE, LS, mlp": Kind(modules="mlp"),
    "PWE-MoE, LS, mlp, task vectors in bfloat16": Kind(modules="mlp", storage="bfloat16"),
    "PWE-MoE, LS, attn+mlp": Kind(modules="attn+mlp"),
    "PWE-MoE, LS, mlp, activations computed twice": Kind(modules="mlp", twice=True),
    "full, EPO": Kind("epo"),
    "PWE-MoE, EPO, mlp": Kind("epo", modules="mlp"),
    "full, LS, bfloat16 products": Kind(precision="bfloat16"),
    "PWE-MoE, LS, mlp, bfloat16 products": Kind(modules="mlp", precision="bfloat16"),
}
NOTE = f"""\
ViT-B/32, {MODELS} models and tasks, {BATCH} pictures of each task a step, {THREADS} threads. Seconds of a \
step: the median of {STEPS} steps in each of {TURNS} processes, in turns. Memory: the largest that a process held, of \
its own (weights, gradients, moments, activations) and with the pages of the mapped task matrix that it touched, which \
workers of a node share. Ratios are to the full step of the same scalarisation and precision. A full step has three \
products a weight and batch (forward, gradient of the input, of the weight); routers of the MLPs, two thirds of the \
weights, need 2.6 of the 3, and no moments of Adam, whose passes over memory are the rest of what they save."""


class Peak:
    """The largest resident memory of this process while the block runs, in bytes."""

    def __enter__(self) -> Peak:
        self.own = self.all = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            found = dict(
                line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if "Rss" in line
            )
            sizes = {name: int(text.split()[0]) * 1024 for name, text in found.items()}
            self.own = max(self.own, sizes["RssAnon"])
            self.all = max(self.all, sizes["RssAnon"] + sizes["RssFile"])


def write_study(folder: Path) -> StudyConfig:
    """Base, models and pictures, as a config."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {"patch_size": 32, "num_labels": 10}
    config = ViTConfig(**sizes)
    torch.manual_seed(0)
    network = ViTForImageClassification(config)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.save_pretrained(folder / "base")
    for n in range(MODELS):
        network.load_state_dict({name: tensor + 1e-3 * torch.randn_like(tensor) for name, tensor in state.items()})
        network.save_pretrained(folder / f"m{n}")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4 * BATCH, 224, 224, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", x_train=pictures, y_train=np.arange(len(pictures)) % 10)
    dataset = {"path": str(folder / "data.npz"), "split": "train"}
    names = [f"m{n}" for n in range(MODELS)]
    return parse_config(
        {
            "base": str(folder / "base"),
            "models": [{"name": name, "source": str(folder / name)} for name in names],
            "tasks": [{"name": name, "dataset": dataset} for name in names],
            "search": {"method": "pwe_moe", "steps": 1000, "batch_size": BATCH},
        }
    )


def steps_of(kind: str, study: Study) -> Callable[[], None]:
    """What makes one step."""
    own = KINDS[kind]
    return routers_step(study, own) if own.modules else full_step(study, own)


def routers_step(study: Study, own: Kind) -> Callable[[], None]:
    """A step of the routers."""
    changes = {"scalarisation": own.scalarisation, "modules": own.modules, "checkpoint_activations": own.twice}
    options: Any = study.config.search.model_copy(update=changes)
    routed = route(study, options)
    training, _ = new_training(routed, options)
    losses = RoutedLosses(routed, threads=THREADS)

    def step() -> None:
        asked = training.ask()
        assert asked is not None
        training.tell(asked, *gather(asked, [(b, *losses.gradient(b)) for b in batches(asked, None)]))

    return step


def full_step(study: Study, own: Kind) -> Callable[[], None]:
    """A step of all weights, as one writes it with torch; the pictures come by the same evaluators."""
    from transformers import ViTForImageClassification

    from mergecore.evaluators.base import Candidate

    network = ViTForImageClassification.from_pretrained(study.config.base, local_files_only=True)
    parameters = list(network.parameters())
    optimiser = torch.optim.Adam(parameters, lr=1e-5)
    evaluators: list[Any] = [study.measured[index].evaluator() for index in study.training_tasks]
    weigher, rng = SCALARISATIONS.get(own.scalarisation)(), np.random.default_rng(0)
    candidate = Candidate(
        np.zeros(MODELS), network.state_dict(keep_vars=True), lambda: network, precision=own.precision, gradients=True
    )

    def loss_of(evaluator: Any) -> torch.Tensor:
        return evaluator.loss(candidate, rng.permutation(evaluator.examples)[:BATCH])

    def step() -> None:
        r_T = rng.dirichlet(np.ones(MODELS))
        optimiser.zero_grad()
        if not weigher.needs_gradients:
            for evaluator, weight in zip(evaluators, r_T.tolist(), strict=True):
                (weight * loss_of(evaluator)).backward()
        else:
            losses, gradients = [], []
            for evaluator in evaluators:
                loss = loss_of(evaluator)
                loss.backward()
                losses.append(float(loss.detach()))
                gradients.append([p.grad for p in parameters])
                optimiser.zero_grad()
            gram_TT = np.array([[_inner(one, two) for two in gradients] for one in gradients])
            weights = weigher.weights(np.array(losses), r_T, gram_TT)
            for parameter, *parts in zip(parameters, *gradients, strict=True):
                parameter.grad = sum(float(w) * g for w, g in zip(weights, parts, strict=True) if g is not None)
        optimiser.step()

    return step


def _inner(one: list[Any], two: list[Any]) -> float:
    return sum(float(torch.dot(a.view(-1), b.view(-1))) for a, b in zip(one, two, strict=True) if a is not None)


def child(kind: str, folder: str) -> None:
    """Measure one kind in this process, and print what was found."""
    config = json.loads((Path(folder) / "study.json").read_text())
    own = KINDS[kind]
    changes = {"execution": {"precision": own.precision}, "merge": {"storage": own.storage}}
    study = prepare(parse_config(config | changes), Path(folder) / "home")
    torch.set_num_threads(THREADS)
    step = steps_of(kind, study)
    step()
    taken = []
    with Peak() as peak:
        for _ in range(STEPS):
            begun = time.perf_counter()
            step()
            taken.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": taken, "own": peak.own, "all": peak.all}))


def main() -> None:
    """Measure every kind in turns, print and store the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = write_study(folder)
        (folder / "study.json").write_text(config.model_dump_json())
        for storage in ("float32", "bfloat16"):
            prepare(parse_config(config.model_dump() | {"merge": {"storage": storage}}), folder / "home")
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for turn in range(TURNS):
            for kind, measured in found.items():
                command = [sys.executable, __file__, kind, place]
                measured.append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
                print(f"turn {turn}, {kind}: {statistics.median(measured[-1]['seconds']):.2f} s", flush=True)
    rows = []
    for kind, own_kind in KINDS.items():
        full = found[own_kind.full]

        def median(measured: list[dict[str, Any]]) -> float:
            return statistics.median(seconds for one in measured for seconds in one["seconds"])

        own, everything = (max(one[key] for one in found[kind]) for key in ("own", "all"))
        rows.append(
            {
                "step": kind,
                "seconds": median(found[kind]),
                "time ratio": median(found[kind]) / median(full),
                "own MB": round(own / 1e6),
                "with mapped MB": round(everything / 1e6),
                "own ratio": own / max(one["own"] for one in full),
                "memory ratio": everything / max(one["all"] for one in full),
            }
        )
    write_table("pwe_moe_step", rows, note=NOTE)


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 2 else main()
