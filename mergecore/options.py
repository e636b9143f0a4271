"""Options that a config gives to a plug-in by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mergecore.errors import InputError


class PluginOptions(BaseModel):
    """What a config may say of one plug-in; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=BaseModel)


def read_options(model: type[Model], given: Mapping[str, Any], *, owner: str, where: str) -> Model:
    """``given`` as the plug-in's own model; the first fault becomes one sentence.

    Args:
        model: the plug-in's options.
        given: what the config says.
        owner: the plug-in, for messages ("The transform 'ties'").
        where: the place in the config ("merge.options").

    Raises:
        InputError: an unknown option, or a value that it cannot have.
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join([where, *map(str, fault["loc"])])
        known = ", ".join(model.model_fields) or "none"
        raise InputError(f"{owner}: {place}: {fault['msg']}.", f"Its options: {known}.") from None
