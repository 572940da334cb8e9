"""The run folder, and what is written there once: the resolved config and the CSV log."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger


def run_folder(trainer: Trainer) -> Path:
    """`<default_root_dir>/<name>`; `<default_root_dir>` for a trainer made without the command line."""
    return Path(trainer.default_root_dir, getattr(trainer, "run_name", ""))


class RunConfig(SaveConfigCallback):
    """Writes the resolved config of `fit` to `config.yaml` of the run folder; no other verb touches it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by Lightning before the run."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / "config.yaml", skip_unset=False, overwrite=True, multifile=False)


class RunLogger(CSVLogger):
    """CSV log `metrics.csv` in the run folder; a resumed run appends to it (Lightning's deletes it)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=folder.parent, name=folder.name, version="")

    @property
    def experiment(self) -> _ExperimentWriter:
        """The writer, made on first use."""
        if self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _AppendingWriter(self.log_dir)
        return self._experiment


class _AppendingWriter(_ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])
