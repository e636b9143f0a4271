"""``compare:`` of the config: which methods are compared, for which numbers of models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from mergecore.comparison.names import COMPARED, check_options, check_search, kind_of, method_names
from mergecore.errors import InputError
from mergecore.section import Section, checked_name, known
from mergecore.transforms import TRANSFORMS


class MethodConfig(Section):
    """One method of a comparison."""

    method: str = Field(description=f"One of: {', '.join(method_names())}.")
    transform: str = Field("none", description="Of the task vectors, under a search method or a rule.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the transform or the merge.")
    search: dict[str, Any] = Field(
        default_factory=dict, description="Options of the search method, where they are not the study's."
    )
    label: str = Field("", description="What tables call it; default: its name, and the transform's.")
    models: list[int] | None = Field(None, description="For which numbers of models; default: for each.")

    @model_validator(mode="after")
    def _is_known(self) -> MethodConfig:
        try:
            kind = kind_of(self.method)
            if self.options:
                check_options(self.method, self.transform, self.options)
            if self.search:
                check_search(self.method, self.search)
        except InputError as error:
            raise ValueError(str(error)) from None
        known(self.transform, TRANSFORMS)
        if self.transform != "none" and kind in ("transform", "merge"):
            raise ValueError(f"the method {self.method!r} takes no transform, it is one")
        if not self.label:
            self.label = self.method if self.transform == "none" else f"{self.method} + {self.transform}"
        return self

    _label = field_validator("label")(lambda text: checked_name(text) if text else text)


class ReferenceConfig(Section):
    """A model that is no merge but stands in the tables beside them, such as one fine-tuned on all tasks at once."""

    name: str = "multi-task"
    source: str = Field(description="As of a model; tasks are measured with the heads of the study's models.")
    models: list[int] | None = Field(None, description="For which numbers of models it stands; default: for each.")

    _name = field_validator("name")(checked_name)


class CompareConfig(Section):
    """What the flow `compare` compares."""

    methods: list[MethodConfig] = Field(
        default_factory=lambda: [MethodConfig(**entry) for entry in COMPARED],
        description="Names, or mappings with method, transform, options and label.",
    )
    counts: list[Annotated[int, Field(ge=2)]] | None = Field(
        None, description="Numbers of models: the first so many, with their tasks; default: from 2 to all."
    )
    preferences: int = Field(20, ge=1, description="Preference vectors drawn from Dirichlet(1).")
    seed: int = Field(0, ge=0)
    references: list[ReferenceConfig] = Field(default_factory=list)

    def entrants(self, count: int) -> list[MethodConfig | ReferenceConfig]:
        """The methods, then the references, that are for so many models."""
        methods = [method for method in self.methods if method.models is None or count in method.models]
        references = [found for found in self.references if found.models is None or count in found.models]
        return [*methods, *references]

    @field_validator("methods", mode="before", json_schema_input_type=list[MethodConfig | str])
    @classmethod
    def _names_are_methods(cls, value: Any) -> Any:
        entries = value if isinstance(value, list) else []
        return [{"method": item} if isinstance(item, str) else item for item in entries] or value

    @model_validator(mode="after")
    def _labels_differ(self) -> CompareConfig:
        labels = [method.label for method in self.methods]
        labels += list(dict.fromkeys(reference.name for reference in self.references))
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"compare: two methods are called {twice[0]!r}; give one of them another 'label'")
        if not self.methods:
            raise ValueError("compare: name at least one method")
        return self
