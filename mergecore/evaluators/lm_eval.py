"""Tasks of the lm-evaluation-harness, on the merged model in memory.

Data sets, few-shot contexts and requests are built once with the evaluator, and token numbers are remembered; a
candidate costs its forward passes, and nothing is written for it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mergecore.data.tokenizers import find_tokenizer
from mergecore.errors import InputError, first_line
from mergecore.evaluators.base import Candidate, Context, Evaluator, Measurement, parse_arguments
from mergecore.evaluators.batching import Batcher, BatchSize, is_estimating
from mergecore.evaluators.harness import (
    HarnessModel,
    TaskSpec,
    build_requests,
    declared_metrics,
    harness_version,
    load_tasks,
    quiet,
    requests_digest,
    seeded,
    workload,
)
from mergecore.evaluators.networks import language_model_bytes, require_language_model
from mergecore.files import file_digest
from mergecore.registry import did_you_mean

if TYPE_CHECKING:
    from mergecore.config import DatasetConfig, TaskConfig


class ModelArguments(BaseModel):
    """``args.model_args``: those of the harness's ``HFLM`` that say what is computed, not on which network or where."""

    model_config = ConfigDict(extra="forbid")

    backend: Literal["default", "causal", "seq2seq"] = "default"
    max_length: int | None = Field(None, ge=1)
    truncation: bool = False
    logits_cache: bool = True
    softmax_dtype: str | None = None
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    use_fast_tokenizer: bool = True
    think_end_token: str | int | None = None
    enable_thinking: bool | None = None
    chat_template_args: dict[str, Any] | None = None


class HarnessArguments(BaseModel):
    """``args`` of the evaluator: those of ``lm_eval.simple_evaluate`` that say what is measured, with its defaults."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    tasks: TaskSpec | list[TaskSpec] = Field(description="Names of tasks, groups or tags, YAML files, or definitions.")
    include_path: str | list[str] = Field([], description="Folders of tasks of your own.")
    include_defaults: bool | None = Field(
        None, description="Whether the harness's own tasks are known; default: where names can mean nothing else."
    )
    num_fewshot: int | None = Field(None, ge=0)
    limit: int | float | None = Field(None, gt=0, description="Documents of each task, or below 1 a share of them.")
    samples: dict[str, list[int]] | None = Field(None, description="Numbers of the documents of each task.")
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    gen_kwargs: dict[str, Any] = Field({}, description="Added to what tasks say of generation.")
    batch_size: BatchSize = "auto"
    model_args: ModelArguments = ModelArguments()
    metadata: dict[str, Any] = Field({}, description="What tasks may ask of the model, beside model_args.")
    bootstrap_iters: int = Field(1000, ge=0, description="For standard errors without a closed form; 0: no errors.")
    random_seed: int | None = 0
    numpy_random_seed: int | None = 1234
    torch_random_seed: int | None = 1234
    fewshot_random_seed: int | None = 1234
    confirm_run_unsafe_code: bool = Field(False, description="Allow tasks that run code which the model writes.")

    @model_validator(mode="after")
    def _one_choice_of_documents(self) -> HarnessArguments:
        if self.limit is not None and self.samples is not None:
            raise ValueError("limit and samples cannot both be given")
        return self

    @property
    def specs(self) -> list[TaskSpec]:
        """What to measure, as a list."""
        return self.tasks if isinstance(self.tasks, list) else [self.tasks]

    @property
    def defaults(self) -> bool:
        """Whether the harness's own tasks are known."""
        if self.include_defaults is not None:
            return self.include_defaults
        named = any("group" in spec if isinstance(spec, dict) else not _is_file(spec) for spec in self.specs)
        return named and not self.folders

    @property
    def folders(self) -> list[str]:
        """Folders of the user's own tasks, as a list."""
        return [self.include_path] if isinstance(self.include_path, str) else self.include_path


class LmEval(Evaluator):
    """Text tasks of the harness, its own or from a folder, as ``lm_eval.simple_evaluate`` measures them.

    Metrics are called ``<task>/<metric>``, and plainly ``<metric>`` when ``args.tasks`` is one task or group; a task
    with several filters has ``<metric>,<filter>``. Definitions may name Python functions beside them: those are run.
    """

    metrics: ClassVar[tuple[str, ...] | None] = None
    version: ClassVar[int] = 1

    def __init__(self, task: TaskConfig, dataset: DatasetConfig | None, context: Context) -> None:
        where = f"The task {task.name!r}"
        if dataset is not None:
            raise InputError(f"{where}: tasks of the harness name their own data.", "Leave 'dataset' out.")
        self._args = args = parse_arguments(HarnessArguments, task)
        self._task, self._context = task, context
        self._harness_version = harness_version()
        self._tokenizer = find_tokenizer(context)
        folder = context.folder
        if folder is None or not (folder / "config.json").is_file():
            raise InputError(f"{where}: {context.base!r} has no config.json, which the harness needs.")
        model_args = args.model_args.model_dump(exclude_unset=True)
        with quiet(), self._seeded():
            self._model = HarnessModel(folder, self._tokenizer.folder, model_args)
            self._loaded = load_tasks(
                args.specs,
                include_path=args.folders,
                include_defaults=args.defaults,
                metadata={"pretrained": str(folder), **model_args, **args.metadata},
                where=where,
            )
            template = self._model.lm.apply_chat_template if args.apply_chat_template else None
            build_requests(
                self._loaded,
                num_fewshot=args.num_fewshot,
                gen_kwargs=args.gen_kwargs,
                fewshot_seed=args.fewshot_random_seed,
                limit=args.limit,
                samples=args.samples,
                prompts={**self._prompts, "chat_template": template},
                unsafe=args.confirm_run_unsafe_code,
                where=where,
            )
        self._key = self._content_key()
        self._batcher: Batcher | None = None

    @property
    def key(self) -> str:
        """Content key of definitions, requests with their documents, arguments, tokenizer and versions."""
        return self._key

    @property
    def examples(self) -> int:
        """Number of documents of all tasks."""
        return sum(len({instance.doc_id for instance in task.instances}) for task in self._loaded["tasks"].values())

    def evaluate(self, candidate: Candidate) -> Measurement:
        """One run of the harness."""
        with quiet(), self._seeded(), self._model.around(candidate) as lm:
            found = self._named(self._run(lm, candidate))
        return Measurement(
            {name: value for name, (value, _) in found.items()},
            {name: error for name, (_, error) in found.items() if math.isfinite(error)},
            self.examples,
        )

    def check(self, base: Any) -> None:
        """The network is a language model, and the harness's tasks have the metric."""
        require_language_model(self._context, self._task.name, decoder_only=False)
        self._named(declared_metrics(self._loaded))

    @property
    def _prompts(self) -> dict[str, Any]:
        return self._args.model_dump(include={"apply_chat_template", "system_instruction", "fewshot_as_multiturn"})

    def _content_key(self) -> str:
        specs = self._args.specs
        folders = [Path(folder) for folder in self._args.folders]
        folders += [Path(spec).parent for spec in specs if isinstance(spec, str) and _is_file(spec)]
        facts = [
            "lm_eval",
            self.version,
            self._harness_version,
            self._args.model_dump(exclude={"batch_size", "include_path", "tasks"}),
            [spec for spec in specs if isinstance(spec, dict)],
            [_definitions(folder.expanduser()) for folder in folders],
            requests_digest(self._loaded),
            self._tokenizer.facts,
            self._model.generation,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _seeded(self) -> AbstractContextManager[None]:
        args = self._args
        return seeded(python=args.random_seed, numpy=args.numpy_random_seed, pytorch=args.torch_random_seed)

    def _run(self, lm: Any, candidate: Candidate) -> dict[str, dict[str, Any]]:
        """Results by task and group."""
        from lm_eval import evaluate

        if self._batcher is None:
            self._work = workload(self._loaded, lm)
            example_bytes = language_model_bytes(self._context, self._work.tokens)
            self._batcher = Batcher(self._args.batch_size, example_bytes=example_bytes, device=candidate.device)
        if is_estimating():
            row_1L = torch.zeros(1, self._work.tokens, dtype=torch.int64, device=candidate.device)
            self._batcher.map(self._work.passes, lambda start, stop: lm._model_call(row_1L.expand(stop - start, -1)))
            return declared_metrics(self._loaded)

        def run(size: int) -> dict[str, dict[str, Any]]:
            lm.batch_size_per_gpu = size
            found = evaluate(
                lm=lm,
                task_dict=self._loaded,
                limit=self._args.limit,
                samples=self._args.samples,
                bootstrap_iters=self._args.bootstrap_iters,
                log_samples=False,
                confirm_run_unsafe_code=self._args.confirm_run_unsafe_code,
                **self._prompts,
            )
            results: dict[str, dict[str, Any]] = found["results"]
            return results

        try:
            return self._batcher.retry(run)
        except AssertionError as error:  # how the harness says that requests do not fit its arguments
            where = f"The task {self._task.name!r}"
            raise InputError(f"{where}: the harness cannot run it: {first_line(error)}.") from error

    def _named(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
        """Every metric by the names it has here, with its standard error, NaN where unknown.

        Raises:
            InputError: the task's metric is none of them.
        """
        tops = list(self._loaded["groups"]) or list(self._loaded["tasks"])
        single = tops[0] if len(self._args.specs) == 1 and (self._loaded["groups"] or len(tops) == 1) else None
        found = {}
        for task, values in results.items():
            keys = [key for key, value in values.items() if "," in key and isinstance(value, (int, float))]
            keys = [key for key in keys if not key.partition(",")[0].endswith("_stderr")]
            metrics = [key.partition(",")[0] for key in keys]
            for key, metric in zip(keys, metrics, strict=True):
                name = metric if metrics.count(metric) == 1 else key
                error = values.get(f"{metric}_stderr,{key.partition(',')[2]}")
                measured = float(values[key]), float(error) if isinstance(error, (int, float)) else math.nan
                found[f"{task}/{name}"] = measured
                if task == single:
                    found[name] = measured
        if self._task.metric not in found:
            raise InputError(
                f"The task {self._task.name!r}: the harness does not measure {self._task.metric!r}.",
                did_you_mean(self._task.metric, found),
            )
        return found


def _is_file(spec: str) -> bool:
    return Path(spec).expanduser().is_file()


def _definitions(folder: Path) -> list[list[str]]:
    """Digests of the files that may define tasks, by their place in the folder."""
    files = sorted(file for pattern in ("*.yaml", "*.py") for file in folder.rglob(pattern))
    return [[str(file.relative_to(folder)), file_digest(file)] for file in files]
