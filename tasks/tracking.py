"""MLflow: a parent run for a study, a child run for each round; every number, table and picture.

The only importer of mlflow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mergecore.errors import InputError, first_line
from mergecore.files import make_writable
from mergecore.study import Study

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRIC_BATCH, PARAM_BATCH = 1000, 100  # MLflow's limits for one request
VALUE_LIMIT = 500
FOLDER_TAG = "mergecore.folder"
STUDY_TAG = "mergecore.study"
PART_TAG = "mergecore.part"


class Tracker:
    """The MLflow run of one study.

    A run that was interrupted (same study and folder, still marked as running, or as killed) is continued, so that a
    study has one parent run however often it was started. As a context manager it marks how the run ended.

    Args:
        study: the study.
        folder: where its files go; tells a continued run from a new one.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self._study = study
        self._folder = str(folder.resolve())
        self.uri = tracking_uri(study.config.tracking.uri, study.home)
        self._started = int(time.time() * 1000)
        self._parent: str | None = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._parent is None:
            return
        # what is no error, a signal or Ctrl-C, is someone's wish
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._client.set_terminated(self._parent, status)

    def begin(self) -> None:
        """Create the parent run, or find it when an interrupted one is continued, so that people can follow it."""
        self._parent = self.interrupted
        if self._parent is None:
            self._parent = self._new_parent()
        else:
            self._client.update_run(self._parent, status="RUNNING")

    @property
    def run_id(self) -> str:
        """The parent run's id, once it has begun."""
        if self._parent is None:
            raise RuntimeError("the MLflow run has not begun")
        return self._parent

    @property
    def interrupted(self) -> str | None:
        """The last run of this study in this folder, if it never ended or was cancelled."""
        condition = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in self._tags.items())
        runs = self._client.search_runs([self._experiment], condition, max_results=1)  # the last one comes first
        return runs[0].info.run_id if runs and runs[0].info.status in ("RUNNING", "KILLED") else None

    @property
    def _tags(self) -> dict[str, str]:
        return {FOLDER_TAG: _digest(self._folder), STUDY_TAG: self._study.digest}

    @property
    def address(self) -> str:
        """Where a person finds the run: a page on a server, or the command that shows a local database."""
        if self.uri.startswith("http"):
            return f"{self.uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {self.uri}"

    def log_child(
        self,
        name: str,
        tables: Mapping[str, pd.DataFrame],
        *,
        numbers: Mapping[str, float],
        series: Sequence[str] = (),
        params: Mapping[str, object] | None = None,
        pictures: Mapping[str, bytes] | None = None,
    ) -> None:
        """A child run for one part of the study; one that an interrupted run left under this name is replaced.

        Args:
            name: of the part.
            tables: file name without its end to table.
            numbers: metrics.
            series: columns of the first table that are metrics too, one step a row.
            params: what tells this part from others.
            pictures: file name without its end to PNG.
        """
        child = self._child(name)
        self._log_params(child, params or {})
        first = next(iter(tables.values()))
        found = [
            (metric_name(f"metric/{column}"), float(value), step)
            for column in series
            for step, value in enumerate(first[column])
        ]
        self._log_metrics(child, [*found, *((metric_name(key), value, 0) for key, value in numbers.items())])
        for file, table in tables.items():
            self._log_table(child, table, f"{file}.json")
        self._log_pictures(child, pictures or {})
        self._client.set_terminated(child)

    def log_step(self, numbers: Mapping[str, float], step: int) -> None:
        """Metrics of the parent run that change from round to round."""
        self._log_metrics(self.run_id, [(metric_name(name), value, step) for name, value in numbers.items()])

    def log_result(
        self,
        summary: Mapping[str, Any],
        tables: Mapping[str, pd.DataFrame],
        pictures: Mapping[str, bytes],
        folder: Path,
    ) -> None:
        """What the study found, on the parent run.

        Args:
            summary: every number in it becomes a metric.
            tables: file name without its end to table; equal names can be compared across runs.
            pictures: file name without its end to PNG.
            folder: its files are kept as they are.
        """
        numbers = [
            (metric_name(name), value, 0)
            for name, value in _flat(summary)
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        self._log_metrics(self.run_id, numbers)
        for name, table in tables.items():
            self._log_table(self.run_id, table, f"{name}.json")
        self._log_pictures(self.run_id, pictures)
        with quiet():
            for file in sorted(folder.iterdir()):
                if file.is_file() and not file.name.startswith("."):
                    self._client.log_artifact(self.run_id, str(file), "run")

    @cached_property
    def _client(self) -> MlflowClient:
        return mlflow_client(self.uri)

    @cached_property
    def _experiment(self) -> str:
        return experiment_id(self._client, self._study.config.tracking.experiment, self._study.home)

    def _new_parent(self) -> str:
        from mlflow.entities import Dataset, DatasetInput

        config = self._study.config
        tags = {**self._tags, "mergecore.method": config.search.method}
        run = self._client.create_run(self._experiment, self._started, tags, run_name=config.name[:250])
        values = dict(_flat(config.model_dump(mode="json", exclude={"models", "tasks"})))
        values |= {f"model.{model.name}": model.source for model in config.models}
        values |= {"task_matrix": self._study.matrix_key}
        self._log_params(run.info.run_id, values)
        inputs = [
            DatasetInput(
                Dataset(
                    name=metric_name(item.label)[:250],
                    digest=item.key[:32],
                    source_type="local",
                    source=json.dumps(item.dataset.model_dump() if item.dataset else {}),
                )
            )
            for item in self._study.measured
        ]
        self._client.log_inputs(run.info.run_id, datasets=inputs)
        return run.info.run_id

    def _child(self, name: str) -> str:
        tags = {"mlflow.parentRunId": self.run_id, PART_TAG: _digest(name)}
        condition = f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.`{PART_TAG}` = '{tags[PART_TAG]}'"
        stale = self._client.search_runs([self._experiment], condition)
        for run in stale:  # of the interrupted run that is being continued
            self._client.delete_run(run.info.run_id)
        return self._client.create_run(self._experiment, run_name=name[:250], tags=tags).info.run_id

    def _log_params(self, run_id: str, values: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        params = [Param(metric_name(key), str(value)[:VALUE_LIMIT]) for key, value in values.items()]
        for start in range(0, len(params), PARAM_BATCH):
            self._client.log_batch(run_id, params=params[start : start + PARAM_BATCH])

    def _log_metrics(self, run_id: str, values: Iterable[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for key, value, step in values if math.isfinite(value)]
        for start in range(0, len(metrics), METRIC_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + METRIC_BATCH])

    def _log_pictures(self, run_id: str, pictures: Mapping[str, bytes]) -> None:
        with quiet():
            for name, picture in pictures.items():
                self._client.log_image(run_id, _image(picture), artifact_file=f"{name}.png")

    def _log_table(self, run_id: str, table: pd.DataFrame, file: str) -> None:
        with quiet():
            self._client.log_table(run_id, table, file)


def tracking_uri(uri: str | None, home: Path) -> str:
    """The tracking URI to use; a relative SQLite path lies under ``home``.

    Without one it is what MLflow's own tools go by, MLFLOW_TRACKING_URI, and otherwise a database under ``home``.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or None
    if uri is None:
        return f"sqlite:///{home / 'mlflow.db'}"
    path = uri.removeprefix("sqlite:///")
    if path != uri and not Path(path).is_absolute():
        return f"sqlite:///{home / path}"
    return uri


def mlflow_client(uri: str) -> MlflowClient:
    """A client of the tracking server and the model registry at ``uri``, from `tracking_uri`.

    Raises:
        InputError: MLflow cannot be used there.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent that the config does not ask for
    from mlflow import MlflowClient

    with quiet(), _first_contact(uri):
        if uri.startswith("sqlite:///"):
            make_writable(Path(uri.removeprefix("sqlite:///")).parent)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _first_contact(uri: str) -> Iterator[None]:
    """What goes wrong where a place is asked for the first time is the place's fault."""
    from mlflow import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise InputError(
            f"MLflow cannot be used at {uri!r}: {first_line(error)}.",
            "tracking.uri or MLFLOW_TRACKING_URI names it, such as 'sqlite:///mlflow.db' or 'http://server:5000'.",
        ) from None


def experiment_id(client: MlflowClient, name: str, home: Path) -> str:
    """The experiment of this name; made when there is none, with its artifacts under ``home`` where MLflow is local.

    Raises:
        InputError: MLflow cannot be used where the client looks for it.
    """
    with quiet(), _first_contact(client.tracking_uri):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        place = (home / "mlartifacts").as_uri() if client.tracking_uri.startswith("sqlite:///") else None
        return client.create_experiment(name, artifact_location=place)


def metric_name(text: str) -> str:
    """A name that MLflow accepts; characters it refuses become '_', with a digest so that names stay apart."""
    cleaned = re.sub(r"[^A-Za-z0-9_\-. /:]", "_", text)[:200]
    return cleaned if cleaned == text else f"{cleaned}.{_digest(text)[:6]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            pairs += _flat(inner, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", inner))
    return pairs


def _image(figure: bytes) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(figure))


class quiet:
    """Keep MLflow's and Alembic's notices off the terminal; what goes wrong still raises."""

    NAMES = ("mlflow", "alembic")

    def __enter__(self) -> None:
        self._levels = {name: logging.getLogger(name).level for name in self.NAMES}
        for name in self.NAMES:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *exception: object) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
