"""An MLflow log in the run folder."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import time
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_medgen.loggers.in_run_folder import LoggerInRunFolder

EXPERIMENT = "lit_medgen"

LATEST = """
INSERT INTO latest_metrics (run_uuid, key, step, is_nan, value, timestamp)
SELECT run_uuid, key, step, is_nan, value, MAX(timestamp) FROM metrics AS each
WHERE step = (SELECT MAX(step) FROM metrics WHERE run_uuid = each.run_uuid AND key = each.key)
GROUP BY run_uuid, key
"""
"""Fills MLflow's table of the last values; beside MAX, SQLite takes the other columns from the same row."""


class MlflowRun(LoggerInRunFolder):
    """An MLflow log, `mlruns/` in the run folder, of losses, scores and sample grids.

    Numbers lie in a SQLite database, since MLflow no longer develops its folders of files; pictures lie beside it. The
    database holds one run, which a resumed one continues. MLflow's report of its use to its makers is switched off.
    """

    title, extra, packages = "MLflow", "mlflow", ("mlflow", "sqlalchemy", "alembic")
    writes = ("mlruns/**",)

    def __init__(self) -> None:
        super().__init__()
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when MLflow is imported
        self._client: Any = None
        self._run_id = ""

    @property
    def _database(self) -> Path:
        return (self.folder / "mlruns" / "mlflow.db").absolute()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `MlflowClient`, made on first use."""
        if self._client is None:
            logging.getLogger("mlflow").setLevel(logging.WARNING)  # it says how it makes its tables
            from mlflow.tracking import MlflowClient  # an extra, and slow to import

            self._database.parent.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(f"sqlite:///{self._database}")
            self._run_id = self._continued_run()
        return self._client

    def _continued_run(self) -> str:
        """The id of the run in the database, now running, or of a new one."""
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            pictures = (self._database.parent / "artifacts").as_uri()
            number = self._client.create_experiment(EXPERIMENT, artifact_location=pictures)
        else:
            number = experiment.experiment_id
            for run in self._client.search_runs([number]):
                self._client.update_run(run.info.run_id, status="RUNNING")
                return str(run.info.run_id)
        return str(self._client.create_run(number, run_name=self.name).info.run_id)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Deletes the numbers and pictures from this step on."""
        if not self._database.is_file():
            return
        with closing(sqlite3.connect(self._database)) as database, database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if {"metrics", "latest_metrics"} <= tables:  # a kill may have left an unfinished database
                database.execute("DELETE FROM metrics WHERE step >= ?", (step,))
                database.execute("DELETE FROM latest_metrics")
                database.execute(LATEST)
        for picture in self._database.parent.glob("artifacts/*/artifacts/images/*"):
            logged_at = re.search(r"[+%]step[+%](\d+)[+%]", picture.name)
            if logged_at and int(logged_at[1]) >= step:
                picture.unlink()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers at a step; characters that MLflow does not take in a name become `_`."""
        from mlflow.entities import Metric  # an extra

        now, client = int(time() * 1000), self.experiment
        rows = [
            Metric(re.sub(r"[^\w/. -]", "_", name), float(value), now, step or 0) for name, value in metrics.items()
        ]
        client.log_batch(self._run_id, metrics=rows)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[np.ndarray], step: int) -> None:
        """Logs pictures, uint8 of rows columns or rows columns colours, under one name."""
        client = self.experiment
        for n, image in enumerate(images):
            client.log_image(self._run_id, image, key=key if len(images) == 1 else f"{key}_{n}", step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Marks the run as ended, well or not."""
        if self._client is not None:
            self._client.set_terminated(self._run_id, "FINISHED" if status in ("success", "finished") else "FAILED")
