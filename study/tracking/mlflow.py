"""A study as one MLflow run, on the server of MLFLOW_TRACKING_URI or in a database in the study's folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from study.spec.schema import StudySpec
from study.spec.trackers import register
from study.spec.yaml_io import SpecError, without_password
from study.tracking.files import kept_files, parameters
from study.tracking.marks import Home
from study.tracking.points import Point
from trainables.storage.remote import Place

EXPERIMENT = "superft"
SERVER = "MLFLOW_TRACKING_URI"
# What MLflow takes in one call, and of one value.
MOST_METRICS, MOST_PARAMS, LONGEST_VALUE = 1000, 100, 500


def check(directory: Place) -> None:
    """Refuse a study at a URI without a server: MLflow's own database is no file there (SpecError)."""
    if isinstance(directory, str) and not os.environ.get(SERVER):
        raise SpecError(f"tracking: mlflow needs a server, named by {SERVER}, for a study at a URI")


@register("mlflow", "an MLflow run, on a server or in the study's folder", module="mlflow", extra="mlflow", check=check)
class MLflow:
    """See `follower.Tracker`. MLFLOW_EXPERIMENT_NAME names the experiment; default `EXPERIMENT`."""

    def __init__(self, spec: StudySpec, home: Home) -> None:
        self._spec, self._home = spec, home
        uri, folder = os.environ.get(SERVER), home.path.resolve()
        self._uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        self.place = without_password(uri)[0] if uri else self._uri
        # Files of a database in the study's folder lie there too, not in the working folder, MLflow's default.
        self._artifacts = None if uri else (folder / "mlartifacts").as_uri()

    def open(self, run: str | None) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = MlflowClient(self._uri)
        if run is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            found = self._client.get_experiment_by_name(name)
            self._experiment = found.experiment_id if found else self._client.create_experiment(name, self._artifacts)
            run = str(self._client.create_run(self._experiment, run_name=self._spec.name).info.run_id)
        self._run = run
        self._client.update_run(run, status="RUNNING")
        there = self._client.get_run(run)
        self._experiment = there.info.experiment_id
        # Parameters are written once: of a study continued under others, study.yaml in the run is the current one.
        new = [
            Param(key, value[:LONGEST_VALUE])
            for key, value in parameters(self._spec).items()
            if key not in there.data.params
        ]
        for start in range(0, len(new), MOST_PARAMS):
            self._client.log_batch(run, params=new[start : start + MOST_PARAMS])
        return run

    def link(self) -> str:
        if self.place.startswith("http"):
            return f"{self.place.rstrip('/')}/#/experiments/{self._experiment}/runs/{self._run}"
        return f"mlflow ui --backend-store-uri {self.place} (run {self._run})"

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(f"{point.group}/{name}", value, round(1000 * point.seconds), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[start : start + MOST_METRICS])

    def close(self, finished: bool) -> None:
        for path in kept_files(self._home.path):
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")
