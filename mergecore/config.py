"""The study's YAML file as typed models; the same objects are the parameters of the flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, field_validator, model_validator

from mergecore.architectures import ARCHITECTURES
from mergecore.budget import BudgetConfig
from mergecore.comparison.config import CompareConfig
from mergecore.errors import InputError
from mergecore.evaluators import EVALUATORS
from mergecore.evaluators.metrics import METRICS
from mergecore.fronts.config import FrontConfig
from mergecore.registry import did_you_mean
from mergecore.run_record import check_names
from mergecore.search import SEARCHES, SearchOptions
from mergecore.section import Section, checked_name, known
from mergecore.transforms import TRANSFORMS


class ModelConfig(Section):
    """One fine-tuned model."""

    name: str = Field(description="What tables, coefficients and the report call this model; * as in its source.")
    source: str = Field(
        description="Hub id, local folder, .safetensors, a .pt/.bin/.pth state dict, models:/NAME@ALIAS of "
        "MLflow's registry; with one *, every one that matches when the run begins."
    )

    _name = field_validator("name")(checked_name)

    @model_validator(mode="after")
    def _one_star(self) -> ModelConfig:
        if self.source.count("*") > 1:
            raise ValueError(f"the source {self.source!r} has more than one '*'")
        if ("*" in self.source) != ("*" in self.name):
            raise ValueError(
                f"the model {self.name!r} of {self.source!r}: a '*' in the source stands in the name too, and the "
                "other way round"
            )
        return self


class ColumnsConfig(Section):
    """What a data set calls its columns, where that is not found by itself."""

    image: str | None = None
    text: str | None = Field(None, description="Also the first text of a pair.")
    text_pair: str | None = Field(None, description="The second text of a pair.")
    label: str | None = None


class DatasetConfig(Section):
    """Examples of one task."""

    path: str = Field(
        description="Hub id, folder (hub format, save_to_disk, images in class folders), .parquet, .csv, .jsonl, "
        ".jsonl.gz, .npz with x_<split> and y_<split>, or 'digits:<task>'."
    )
    config: str | None = Field(
        None, description="Which configuration of the data set, such as 'cola' of 'nyu-mll/glue'."
    )
    revision: str | None = Field(None, description="Commit, tag or branch on the hub.")
    columns: ColumnsConfig = ColumnsConfig()
    split: str = Field("test", description="The split that coefficients are chosen on.")
    test_split: str | None = Field(
        None, description="A split that takes no part in the choice; reported for the front."
    )
    train_split: str | None = Field(
        None, description="Labelled examples for methods that learn by gradients; default: those of 'split'."
    )
    limit: int | None = Field(None, gt=0, description="Use at most so many examples, a class-stratified draw.")
    train_limit: int | None = Field(None, gt=0, description="The same for train_split.")
    seed: int = Field(0, ge=0, description="Seed of that draw.")

    @model_validator(mode="after")
    def _held_out_is_apart(self) -> DatasetConfig:
        if self.test_split == self.split:
            raise ValueError(f"the test_split {self.split!r} is the split that coefficients are chosen on")
        if self.test_split is not None and self.test_split == self.train_split:
            raise ValueError(f"the test_split {self.test_split!r} is the split that is trained on")
        return self


class TaskConfig(Section):
    """One objective: what is measured, on which data, by which evaluator."""

    name: str = Field(description="What is measured; with a *, one task for each model that a pattern found.")
    evaluator: str = Field("image_classification", description=f"One of: {', '.join(EVALUATORS)}.")
    dataset: DatasetConfig | None = None
    metric: str = Field("accuracy", description="Direction and range follow from a known metric.")
    direction: Literal["maximize", "minimize"] | None = Field(None, description="Needed for a metric of your own.")
    range: tuple[float | None, float | None] | None = Field(None, description="[lower, upper]; null is unbounded.")
    head: str | None = Field(
        None, description="Whose head measures this task, where heads are kept apart; default: the task's namesake."
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Arguments of the evaluator.")

    _name = field_validator("name")(checked_name)

    @field_validator("evaluator")
    @classmethod
    def _known_evaluator(cls, value: str) -> str:
        return known(value, EVALUATORS)

    @model_validator(mode="after")
    def _metric_is_defined(self) -> TaskConfig:
        evaluator = EVALUATORS.get(self.evaluator)
        if evaluator.metrics is not None and self.metric not in evaluator.metrics:
            raise ValueError(
                f"task {self.name!r}: {self.evaluator} does not measure {self.metric!r}. "
                + did_you_mean(self.metric, evaluator.metrics)
            )
        if self.metric not in METRICS and self.direction is None:
            raise ValueError(
                f"task {self.name!r}: say 'direction: maximize' or 'minimize' for the metric {self.metric!r}"
            )
        lower, upper = self.bounds
        if lower is not None and upper is not None and not lower < upper:
            raise ValueError(f"task {self.name!r}: the range [{lower}, {upper}] of {self.metric!r} is empty")
        if self.metric in METRICS:
            known_lower, known_upper = METRICS[self.metric].bounds
            if (known_lower, known_upper) != (lower, upper) and evaluator.metrics is not None:
                raise ValueError(
                    f"task {self.name!r}: {self.metric!r} lies in [{known_lower}, {known_upper}], "
                    f"not in [{lower}, {upper}]"
                )
        return self

    @property
    def maximise(self) -> bool:
        """Whether more is better."""
        if self.direction is not None:
            return self.direction == "maximize"
        return METRICS[self.metric].maximise

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Range of the metric, None where it is unbounded."""
        if self.range is not None:
            return self.range
        return METRICS[self.metric].bounds if self.metric in METRICS else (None, None)


class MergeConfig(Section):
    """What happens to the task vectors before they are added up."""

    transform: str = Field("none", description=f"One of: {', '.join(TRANSFORMS)}.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the transform, such as keep: 0.2.")
    storage: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Number format of the stored task vectors; sums are always float32."
    )
    heads: Literal["auto", "merge"] | list[str] = Field(
        "auto", description="Heads that differ by task are kept apart; 'merge' forbids that, patterns name more."
    )
    vocabulary: Literal["same", "common"] = Field(
        "same", description="'common' merges the common rows of embeddings of different size."
    )

    @field_validator("transform")
    @classmethod
    def _known_transform(cls, value: str) -> str:
        return known(value, TRANSFORMS)

    @model_validator(mode="after")
    def _known_options(self) -> MergeConfig:
        if self.options:
            from mergecore.transforms.base import transform_options  # brings torch, which most configs can do without

            try:
                transform_options(TRANSFORMS.get(self.transform), self.options, self.transform)
            except InputError as error:
                raise ValueError(str(error)) from None
        return self


class ExecutionConfig(Section):
    """Where and how candidates are evaluated."""

    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    threads_per_worker: int = Field(
        1, ge=1, description="The same for any number of workers: results repeat to the bit."
    )
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        "auto",
        description="A fraction shares a GPU between workers; auto: one each where this machine has any.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of matrix products; auto: float32 on CPUs, bfloat16 on GPUs. Part of an evaluation's key."
    )
    ray_address: str | None = Field(
        None, description="A running cluster to join; default: that of RAY_ADDRESS, without one a local one is started."
    )
    minutes_per_evaluation: Literal["auto"] | Annotated[float, Field(gt=0.0)] | None = Field(
        "auto",
        description="After which one candidate on all its tasks, loading included, counts as hung and its worker is "
        "replaced; auto: 20 times the longest so far, at least 10; null: never.",
    )
    attempts: int = Field(3, ge=1, description="Tries for one evaluation before it is recorded as failed.")
    retry_failed: bool = Field(False, description="Try evaluations again that an earlier run recorded as failed.")

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_past_one(cls, value: float | str) -> float | str:
        if isinstance(value, float) and value > 1 and value != int(value):
            raise ValueError(f"execution.gpus_per_worker: a part of a GPU or whole ones, not {value:g}")
        return value


class TrackingConfig(Section):
    """Where numbers and pictures are logged."""

    uri: str | None = Field(None, description="MLflow tracking URI; default: mlflow.db under MERGECORE_HOME.")
    experiment: str = "map"


if TYPE_CHECKING:
    SearchConfig = SearchOptions
    AnySearch: Any = SearchOptions
else:
    # the options of every registered search method, told apart by `method`
    AnySearch = Union[tuple(SEARCHES.get(name).Options for name in SEARCHES)]  # noqa: UP007
    SearchConfig = Annotated[AnySearch, Field(discriminator="method")]


class StudyConfig(Section):
    """A whole study: base, fine-tuned models, objectives, search, budget, front, execution, tracking."""

    name: str = Field("study", description="Names the run everywhere and its default folder runs/NAME.")
    base: str = Field(description="The pre-trained checkpoint all models were fine-tuned from.")
    architecture: str | None = Field(
        None, description=f"'family' or 'family:name' where no config.json says it; {', '.join(ARCHITECTURES)}."
    )
    models: list[ModelConfig]
    tasks: list[TaskConfig]
    merge: MergeConfig = MergeConfig()
    search: SearchConfig = Field(default_factory=lambda: SEARCHES.get("map").Options())
    budget: BudgetConfig = BudgetConfig()
    front: FrontConfig = FrontConfig()
    execution: ExecutionConfig = ExecutionConfig()
    tracking: TrackingConfig = TrackingConfig()
    compare: CompareConfig | None = Field(None, description="What the flow `compare` compares.")

    _name = field_validator("name")(checked_name)

    @property
    def open(self) -> bool:
        """Whether the models are those that match a pattern when the run begins (`mergecore.patterns`)."""
        return any("*" in model.source for model in self.models)

    @property
    def owners(self) -> tuple[int | None, ...]:
        """For each task the model that was fine-tuned for it, whose head measures it or whose name it has, or None."""
        places = {model.name: n for n, model in enumerate(self.models)}
        return tuple(places.get(task.head or task.name) for task in self.tasks)

    @property
    def comparison(self) -> CompareConfig:
        """What the flow `compare` compares: what the study says, or the defaults."""
        return self.compare or CompareConfig()

    @property
    def learns(self) -> bool:
        """Whether some method of the study may learn on labelled data by gradients."""
        return bool(SEARCHES.get(self.search.method).learns) or self.compare is not None

    def untransformed(self) -> StudyConfig:
        """The study over the task vectors as they are."""
        merge = self.merge.model_copy(update={"transform": "none", "options": {}})
        return self.model_copy(update={"merge": merge})

    def first(self, count: int) -> StudyConfig:
        """The study of the first models and the tasks that they were fine-tuned for.

        The number of samples is that of this study for all models, and otherwise the search method's default.

        Raises:
            InputError: there are not so many models, or one of them has no task.
        """
        if count == len(self.models):
            return self
        if not 2 <= count < len(self.models):
            raise InputError(f"The study has {len(self.models)} models, so it cannot be had with {count}.")
        owned = zip(self.tasks, self.owners, strict=True)
        tasks = [task for task, owner in owned if owner is not None and owner < count]
        without = next((self.models[n].name for n in range(count) if n not in self.owners), None)
        if without is not None:
            raise InputError(
                f"No task belongs to the model {without!r}, so the study cannot be had with fewer models.",
                "Give models and tasks the same names, or say 'compare: {counts: [<all models>]}'.",
            )
        search = self.search.model_copy(update={"samples": None} if hasattr(self.search, "samples") else {})
        if isinstance(search.box, list):
            search = search.model_copy(update={"box": search.box[:count]})
        return self.model_copy(update={"models": self.models[:count], "tasks": tasks, "search": search})

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, value: str | None) -> str | None:
        if value is not None:
            known(value.partition(":")[0], ARCHITECTURES)
        return value

    @field_validator("search", mode="before", json_schema_input_type=AnySearch)  # "map" may be left out
    @classmethod
    def _known_method(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = {"method": "map", **value}
            if isinstance(value["method"], str):
                known(value["method"], SEARCHES)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if len(self.models) < 2 and not self.open:
            raise ValueError(
                f"models: a merge needs at least two fine-tuned models, the config names {len(self.models)}"
            )
        if "*" in self.base:
            raise ValueError(f"base: {self.base!r} has a '*', but there is one base")
        if not self.tasks:
            raise ValueError("tasks: name at least one task to measure")
        for kind, names in (("models", [m.name for m in self.models]), ("tasks", [t.name for t in self.tasks])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind}: the name {twice[0]!r} is used twice")
        for task in self.tasks if not self.open else []:
            heads = ["base", *(model.name for model in self.models)]
            if task.head is not None and task.head not in heads:
                raise ValueError(
                    f"task {task.name!r}: no model is called {task.head!r}, so it has no head. "
                    + did_you_mean(task.head, heads)
                )
        try:
            check_names([m.name for m in self.models], [t.name for t in self.tasks])
        except InputError as error:
            raise ValueError(str(error)) from None
        if not self.open:
            if starred := next((task.name for task in self.tasks if "*" in task.name), None):
                raise ValueError(f"task {starred!r}: no model has a '*' in its source for which it could stand")
            self.search.box_array(len(self.models))
        return self
