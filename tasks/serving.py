"""A front as an MLflow model: one pyfunc whose parameter is the preference vector.

The model is saved as code, so nothing is pickled: `tasks.served_model` runs where it is loaded, which takes an
installation of mergecore there.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent that nobody asked for

from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext, save_model
from mlflow.types import ParamSchema, ParamSpec

from mergecore.errors import InputError
from mergecore.files import atomic_folder
from mergecore.run_record import RunRecord
from mergecore.serving import KEPT, FrontPoints, ServedFront, answering_tasks, front_points, write_front
from mergecore.study import Study
from tasks.export import run_study

FRONT = "front"
"""The folder of `mergecore.serving` in that of the model."""

CODE = Path(__file__).with_name("served_model.py")


class FrontModel(PythonModel):
    """Answers by the network for a preference.

    Args:
        folder: of the saved model.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load_context(self, context: PythonModelContext) -> None:
        """Open the front; ``model_config: {kept: …}`` says how many merged networks stay in memory."""
        kept = (context.model_config or {}).get("kept", KEPT)
        self._front = ServedFront(self._folder / FRONT, kept=int(kept))

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for each input (`mergecore.serving.ServedFront.predict`).

        Args:
            context: of MLflow.
            model_input: an array, a list, or a table whose columns are texts or pairs of texts; MLflow takes the hint
                of an array for no schema at all.
            params: ``preference``, one weight a task, and ``task``, whose inputs they are.

        Raises:
            MlflowException: input that cannot be used, which servers answer with status 400.
        """
        inputs = model_input.to_numpy() if isinstance(model_input, pd.DataFrame) else model_input
        asked = params or {}
        try:
            return self._front.predict(inputs, asked.get("preference"), asked.get("task"))
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None


def declare_model(folder: Path) -> None:
    """Tell MLflow what the model in ``folder`` is; for `tasks.served_model`."""
    set_model(FrontModel(folder))


def package_front(record: RunRecord, folder: Path) -> None:
    """Write an MLflow model of all that a run's front can be.

    Args:
        record: the finished run.
        folder: where to; must not exist or be empty.

    Raises:
        InputError: its sources are gone or changed; no task that answers inputs; the folder is in use.
    """
    study = run_study(record)
    save_front(study, None if study.routers is not None else front_points(record), folder)


def save_front(study: Study, points: FrontPoints | None, folder: Path) -> None:
    """Save a front as a folder that MLflow loads and serves, whole or not at all.

    Args:
        study: the prepared study; with routers where the front is theirs.
        points: the front (`mergecore.serving.front_points`); None where the study has routers.
        folder: where to; must not exist or be empty.

    Raises:
        InputError: the folder is in use, or no task answers inputs.
    """
    answering = [item.task.name for item in answering_tasks(study)]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"The folder {str(folder)!r} already exists.", "Name a new one.")
    if folder.exists():
        folder.rmdir()
    tasks = [task.name for task in study.config.tasks]
    parameters = [
        ParamSpec("preference", "double", [1 / len(tasks)] * len(tasks), shape=(-1,)),
        ParamSpec("task", "string", answering[0]),
    ]
    with atomic_folder(folder) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it would have an example of the inputs
        save_model(
            temporary,
            python_model=str(CODE),
            model_config={"kept": KEPT},
            # inputs are not part of it: they differ by task, and the predictors say better what is wrong with them
            signature=ModelSignature(params=ParamSchema(parameters)),
            pip_requirements=[_requirement()],
            metadata={"tasks": tasks, "answering": answering},
        )
        write_front(study, points, temporary / FRONT)


def _requirement() -> str:
    """This version of mergecore or a patch of it: a front's files are those of one minor version."""
    own = version("mergecore")
    major, minor, *_ = own.split(".")
    return f"mergecore>={own},<{major}.{int(minor) + 1}"
