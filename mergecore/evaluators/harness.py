"""The lm-evaluation-harness as a library: tasks loaded once, a language model around whichever network is measured.

Does what ``lm_eval.simple_evaluate`` of 0.4.13 does around its call of ``lm_eval.evaluate``. It is not called itself,
because in every call it builds all requests anew and asks the hub, git and the machine about the model.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import logging
import os
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mergecore.errors import InputError, first_line
from mergecore.evaluators.base import Candidate
from mergecore.registry import did_you_mean

TaskSpec = str | dict[str, Any]
"""A task, group or tag by name, a YAML file by path, or a task's own definition."""


def harness_version() -> str:
    """Version of the installed harness; raises ``InputError`` when it or what it runs networks with is missing."""
    try:
        version("accelerate")
        return version("lm_eval")
    except PackageNotFoundError:
        raise InputError(
            "The evaluator 'lm_eval' needs the lm-evaluation-harness, which is not installed.",
            "Install it: pip install 'mergecore[lm-eval]'.",
        ) from None


def load_tasks(
    specs: Sequence[TaskSpec],
    *,
    include_path: Sequence[str],
    include_defaults: bool,
    metadata: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """Tasks with their data, and the groups they are in, as the harness's ``TaskManager.load`` returns them.

    Args:
        specs: what to load.
        include_path: folders of further tasks.
        include_defaults: whether the harness's own tasks are known; to list them takes seconds.
        metadata: what tasks may ask of the model.
        where: begins messages.

    Raises:
        InputError: an unknown task, one that is faulty or needs what is not there, or data that cannot be had.
    """
    folders = tuple(str(Path(folder).expanduser()) for folder in include_path)
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"{where}: the folder {folder!r} of args.include_path does not exist.")
    described = json.dumps(metadata, sort_keys=True, default=str)
    own = folders or not include_defaults
    manager = _task_manager(folders, include_defaults, described) if own else _default_tasks(described)
    for spec in specs:
        if isinstance(spec, str) and spec not in manager.task_index and not Path(spec).expanduser().is_file():
            raise InputError(f"{where}: the harness knows no task {spec!r}.", did_you_mean(spec, manager.all_tasks))
    try:
        found: dict[str, Any] = manager.load(copy.deepcopy(list(specs)))  # it changes them
    except OSError as error:
        raise InputError(
            f"{where}: the data of the harness's task cannot be had: {first_line(error)}.",
            "It comes from the hub, unless the task's own definition names local files ('args.include_path').",
        ) from error
    except Exception as error:  # whatever a definition gets wrong, of any kind
        hint = "" if include_defaults else "If it builds on the harness's own tasks, say 'include_defaults: true'."
        raise InputError(f"{where}: the harness cannot load the task: {first_line(error)}.", hint) from error
    for name, task in found["tasks"].items():
        if getattr(task, "MULTIMODAL", False):
            raise InputError(f"{where}: the harness's task {name!r} is about more than text.")
    return found


def _task_manager(folders: tuple[str, ...], include_defaults: bool, metadata: str) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(
        include_path=list(folders) or None, include_defaults=include_defaults, metadata=json.loads(metadata)
    )


@functools.lru_cache(maxsize=8)
def _default_tasks(metadata: str) -> Any:
    return _task_manager((), True, metadata)


def build_requests(
    loaded: Mapping[str, Any],
    *,
    num_fewshot: int | None,
    gen_kwargs: Mapping[str, Any],
    fewshot_seed: int | None,
    limit: float | None,
    samples: Mapping[str, list[int]] | None,
    prompts: Mapping[str, Any],
    unsafe: bool,
    where: str,
) -> None:
    """Give every task its requests, once: from here on, to build them only forgets the answers.

    Args:
        loaded: what `load_tasks` returned.
        num_fewshot: overrides what definitions say, unless that is 0.
        gen_kwargs: added to what they say.
        fewshot_seed: of the draw of examples.
        limit: documents of each task, or below 1 a share of them.
        samples: task to numbers of its documents; a task that is not named has all.
        prompts: chat template and system instruction, as ``Task.build_all_requests`` takes them.
        unsafe: whether tasks may run code that the model writes.
        where: begins messages.

    Raises:
        InputError: a task's prompts cannot be made.
    """
    from lm_eval.evaluator_utils import get_sample_size

    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) and not unsafe:
            raise InputError(
                f"{where}: the harness's task {name!r} runs code that the model writes.",
                "Allow it with 'args: {confirm_run_unsafe_code: true}'.",
            )
        if gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(gen_kwargs), update=True)
        stated = task.get_config("num_fewshot")
        if stated is None or (num_fewshot is not None and stated != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=fewshot_seed)
        try:
            task.build_all_requests(
                limit=get_sample_size(task, limit), samples=None if samples is None else samples.get(name), **prompts
            )
        except Exception as error:  # of any kind: from templates, tokenizers and the definition's own functions
            raise InputError(
                f"{where}: the prompts of the harness's task {name!r} cannot be made: {first_line(error)}."
            ) from error
        task.build_all_requests = functools.partial(_forget_answers, task)


def _forget_answers(task: Any, **_: Any) -> None:
    for instance in task.instances:
        instance.resps, instance.filtered_resps = [], {}


def requests_digest(loaded: Mapping[str, Any]) -> str:
    """Content of all requests and their documents."""
    digest = hashlib.sha256()
    for name, task in loaded["tasks"].items():
        for instance in task.instances:
            facts = [name, instance.request_type, instance.doc_id, instance.repeats, instance.arguments, instance.doc]
            digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Workload:
    """What a run asks of the network.

    Attributes:
        tokens: of the longest request, at most what the network reads.
        passes: requests, each counted again for every further ``tokens`` that it lets the network write.
    """

    tokens: int
    passes: int


def workload(loaded: Mapping[str, Any], lm: Any) -> Workload:
    """The work of one run of ``loaded`` by the harness's model ``lm``."""
    instances = [instance for task in loaded["tasks"].values() for instance in task.instances]
    texts = {"".join(part for part in instance.args if isinstance(part, str)) for instance in instances}
    tokens = min(max(len(lm.tok_encode(text)) for text in texts), int(lm.max_length))
    options = [part for instance in instances for part in instance.args if isinstance(part, dict)]
    written = sum(int(option.get("max_gen_toks") or lm.max_gen_toks) for option in options)
    return Workload(tokens, len(instances) + written // tokens)


def declared_metrics(loaded: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What a run will find, in the shape of its results, each number 0."""
    found = {
        name: {f"{metric},{filters.name}": 0.0 for metric in task.aggregation() for filters in task._filters}
        for name, task in loaded["tasks"].items()
    }
    for name, group in loaded["groups"].items():
        below = sorted({key.partition(",")[2] for task in group.get_all_tasks() for key in found[task.task_name]})
        found[name] = {
            f"{summed.metric},{filters}": 0.0
            for summed in group.aggregate_metric_list or []
            for filters in summed.filter_list or below
        }
    return found


class HarnessModel:
    """A language model of the harness; the network in it is the candidate's.

    Args:
        folder: config.json and generation_config.json of the network.
        tokenizer: folder of the tokenizer.
        arguments: of the harness's ``HFLM``.

    Attributes:
        lm: the harness's model.
        generation: how the folder says that text is generated, as plain JSON; None when it does not say.

    Raises:
        InputError: the harness refuses an argument, or files cannot be read.
    """

    def __init__(self, folder: Path, tokenizer: Path, arguments: Mapping[str, Any]) -> None:
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoConfig, GenerationConfig

        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            # anything but a module is taken as it is: a network would be changed, its tensors tied anew
            self._none = SimpleNamespace(config=config, device=torch.device("cpu"))
            self.lm = HFLM(pretrained=self._none, tokenizer=str(tokenizer), **arguments)
            stated = (folder / "generation_config.json").is_file()
            self._generation = GenerationConfig.from_pretrained(folder, local_files_only=True) if stated else None
        except Exception as error:  # of any kind, also from its dependencies
            raise InputError(f"The harness cannot run networks of {str(folder)!r}: {first_line(error)}.") from error
        self.generation = None if self._generation is None else self._generation.to_diff_dict()
        self.lm.tok_encode = _remembering(self.lm.tok_encode)

    @contextlib.contextmanager
    def around(self, candidate: Candidate) -> Iterator[Any]:
        """The harness's model with the candidate's network in it, which generates as its folder says."""
        module: Any = candidate.module()
        own = getattr(module, "generation_config", None)
        self.lm._model, self.lm._device = module, candidate.device
        low = candidate.precision != "float32"
        self.lm.mixed_precision_dtype = getattr(torch, candidate.precision) if low else None
        if self._generation is not None:
            module.generation_config = self._generation
        try:
            with candidate.forward():
                yield self.lm
        finally:
            self.lm._model = self._none
            if self._generation is not None:
                module.generation_config = own


def _remembering(encode: Callable[..., list[int]]) -> Callable[..., list[int]]:
    """The same function, which knows what it was asked before: all candidates get the same requests."""
    known: dict[Any, array[int]] = {}

    @functools.wraps(encode)
    def encoded(string: str, *args: Any, **kwargs: Any) -> list[int]:
        digest = hashlib.sha256(string.encode("utf-8", "surrogatepass")).digest()
        key = (digest, args, tuple(sorted(kwargs.items())))
        if key not in known:
            known[key] = array("i", encode(string, *args, **kwargs))
        return known[key].tolist()

    return encoded


@contextlib.contextmanager
def seeded(*, python: int | None, numpy: int | None, pytorch: int | None) -> Iterator[None]:
    """Global random numbers as the harness sets them, and afterwards as they were before."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        if python is not None:
            random.seed(python)
        if numpy is not None:
            np.random.seed(numpy)
        if pytorch is not None:
            torch.manual_seed(pytorch)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep bars, prints and notices of the harness off the terminal, and its bootstrap in this process."""
    from mergecore.architectures.hub_transformers import quiet_transformers

    logger, before = logging.getLogger("lm_eval"), os.environ.get("DISABLE_MULTIPROC")
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with (
            quiet_transformers(),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
