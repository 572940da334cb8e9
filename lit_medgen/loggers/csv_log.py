"""The CSV log of a run folder, which a resumed run continues."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_medgen.errors import space_for
from lit_medgen.files import as_csv, write_atomically


class RunLogger(CSVLogger):
    """CSV log `metrics.csv` in the run folder; a resumed run appends to it (Lightning's deletes it)."""

    writes = ("metrics.csv",)

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=folder.parent, name=folder.name, version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, made on first use."""
        if self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _AppendingWriter(self.log_dir)
        return self._experiment

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the rows from this step on: a run that was killed after its last checkpoint writes them again."""
        self.experiment.rewind(step)


class _AppendingWriter(_ExperimentWriter):
    """Rows are appended; the header grows by writing the file anew, whole."""

    def _check_log_dir_exists(self) -> None:
        self.path = Path(self.metrics_file_path)
        if self.path.is_file():
            with self.path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def save(self) -> None:
        """Appends what was logged since the last time; NoSpaceError if the disk is full."""
        if not self.metrics:
            return
        if self._record_new_keys() or not self.path.is_file():
            self._write(self._rows())
        with space_for(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.metrics_keys).writerows(self.metrics)
        self.metrics = []

    def rewind(self, step: int) -> None:
        """Keeps the rows before a step, and of those only whole ones: a kill may have cut the last."""
        rows = self._rows()
        whole = [row for row in rows if None not in row and None not in row.values() and row["step"].isdigit()]
        kept = [row for row in whole if int(row["step"]) < step]
        if kept != rows or not self._ends_with_newline():
            self._write(kept)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return rows if self._ends_with_newline() else rows[:-1]

    def _ends_with_newline(self) -> bool:
        return not self.path.is_file() or self.path.read_bytes()[-1:] in (b"", b"\n")

    def _write(self, rows: list[dict[str, str]]) -> None:
        write_atomically(self.path, as_csv(rows, self.metrics_keys))
