"""How long evaluations will take, from one timed batch of each task."""

from __future__ import annotations

import functools
import math
import os

import numpy as np
import torch

from mergecore.config import StudyConfig
from mergecore.errors import InputError, first_line
from mergecore.evaluators import EVALUATORS
from mergecore.evaluators.base import Candidate
from mergecore.evaluators.batching import estimating
from mergecore.execution import device_of, precision_of
from mergecore.measured import Measured, build_network
from mergecore.study import Opened

Weights = dict[str, torch.Tensor]


def seconds_of_evaluations(config: StudyConfig, opened: Opened) -> dict[str, float]:
    """Task to seconds of one evaluation, on a network of zeros: as fast as any other, and nothing has to be read.

    Left out are tasks that call no network of ours or whose evaluator refuses zeros, and every task when the network
    would fill memory or the GPUs are elsewhere.

    Raises:
        InputError: a network cannot be built, or the first batch does not go through it.
    """
    device = torch.device(device_of(config))
    if device.type == "cuda" and not torch.cuda.is_available():
        return {}  # the GPUs are the cluster's
    # with heads apart, each task's own one completes the body
    kept = opened.alignment.base.tensors if opened.heads else opened.base.tensors
    if 3 * 4 * sum(math.prod(info.shape) for info in kept.values()) > _free_bytes(device):
        return {}
    zeros = {
        name: torch.zeros(
            info.shape, device=device, dtype=torch.float32 if info.dtype.is_floating_point else info.dtype
        )
        for name, info in kept.items()
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(config.execution.threads_per_worker)
    try:
        items = [item for item in opened.measured if item.role == "search"]
        found = {item.task.name: _seconds(config, opened, item, zeros, device) for item in items}
    finally:
        torch.set_num_threads(threads)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # this process only looks; its workers need the memory
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def _seconds(config: StudyConfig, opened: Opened, item: Measured, zeros: Weights, device: torch.device) -> float | None:
    if not EVALUATORS.get(item.task.evaluator).needs_network:
        return None
    head = opened.heads[item.head] if item.head is not None else None
    state = head.state_dict(zeros) if head is not None else zeros
    weights = {name: tensor.to(device) for name, tensor in state.items()}

    @functools.cache
    def module() -> torch.nn.Module:
        return build_network(config, opened.base.folder, head, weights, device)

    candidate = Candidate(np.zeros(len(config.models)), weights, module, device=device, precision=precision_of(config))
    with estimating() as estimate:
        try:
            item.evaluator().evaluate(candidate)
        except InputError:
            raise
        except (ArithmeticError, torch.linalg.LinAlgError):
            return None  # what becomes of zeros says nothing of real weights
        except Exception as error:
            if estimate.passes and not estimate.failed:
                return None
            # no batch goes through the network: shapes do not fit, whatever the weights
            raise InputError(f"The task {item.task.name!r} cannot be measured: {first_line(error)}.") from None
    return estimate.seconds if estimate.passes else None


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
