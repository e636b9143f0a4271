"""Where a study's candidates are evaluated: by how many workers, on what device, in which precision."""

from __future__ import annotations

import os

import torch

from mergecore.config import ExecutionConfig, StudyConfig
from mergecore.errors import InputError
from mergecore.files import usable_cores

ROUNDING = 1e-6
"""Of a quotient: ten workers with a tenth of a GPU each fill one."""


def places(available: float, each: float) -> int:
    """How many workers find room in what a machine has of something, of which every worker takes ``each``."""
    return int(available / each + ROUNDING)


def cluster_address(execution: ExecutionConfig) -> str:
    """Of the Ray cluster that a study joins: the config's or that of RAY_ADDRESS; empty where it starts a local one."""
    address = execution.ray_address or os.environ.get("RAY_ADDRESS") or ""
    return "" if address == "local" else address


def gpus_here() -> int:
    """GPUs of this machine that torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_of(config: StudyConfig) -> str:
    """ "cuda" when workers are given GPUs.

    Raises:
        InputError: workers of this machine are to have GPUs that it has not.
    """
    execution, here = config.execution, gpus_here()
    if execution.gpus_per_worker == "auto":
        return "cuda" if here else "cpu"
    if not cluster_address(execution) and execution.gpus_per_worker > here:
        found = f"only {here} on this machine" if here else "no GPU on this machine"
        raise InputError(
            f"execution.gpus_per_worker is {execution.gpus_per_worker:g}, but torch finds {found}.",
            "Leave it away, or name a cluster with RAY_ADDRESS or 'execution: {ray_address: …}'.",
        )
    return "cuda" if execution.gpus_per_worker else "cpu"


def in_this_process(device: str) -> torch.device:
    """The device of a study, where something of it is measured without workers.

    Raises:
        InputError: that is a GPU of a cluster, and this machine has none; a CPU would measure other numbers.
    """
    if device == "cuda" and not gpus_here():
        raise InputError("This study is measured on GPUs, and this machine has none.", "Use a machine that has one.")
    return torch.device(device)


def precision_of(config: StudyConfig) -> str:
    """Of matrix products: what the config says, or what suits the device."""
    if config.execution.precision != "auto":
        return config.execution.precision
    return "bfloat16" if device_of(config) == "cuda" else "float32"


def gpus_per_worker(config: StudyConfig) -> float:
    """GPUs, or the fraction of one, that each worker is given; "auto" gives one where candidates live on GPUs."""
    wanted = config.execution.gpus_per_worker
    return float(device_of(config) == "cuda") if wanted == "auto" else wanted


def workers_here(config: StudyConfig) -> int:
    """How many workers a run on this machine would start, at least one.

    A number in the config counts whatever the cores; GPUs that are not there count for nobody.
    """
    execution = config.execution
    wanted = execution.workers
    count = places(usable_cores(), execution.threads_per_worker) if wanted == "auto" else wanted
    if not cluster_address(execution) and (gpus := gpus_per_worker(config)):
        count = min(count, places(gpus_here(), gpus))
    return max(1, count)
