"""Loggers that a resumed run continues: a CSV file in the run folder, and a Weights & Biases run that keeps secrets."""

from __future__ import annotations

import csv
import os
import secrets
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_medgen.errors import InputError, describe, space_for
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


class WandbRun(WandbLogger):
    """A Weights & Biases run that sends losses, scores, pictures and the method's config, and nothing else.

    No code, no git state, no host name, no command line, no console output, no list of packages, no file path. A
    resumed run is the same W&B run: its id stands in the run folder, or in WANDB_RUN_ID.

    Args:
        project: W&B project.
        save_dir: folder of W&B's own files.
        group: group of the run, e.g. a sweep over seeds.
        tags: tags of the run.
    """

    writes = ("wandb_id",)

    def __init__(
        self,
        project: str = "lit_medgen",
        save_dir: str = "runs",
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        try:
            import wandb  # an extra, and slow to import
        except ModuleNotFoundError as error:
            raise InputError('trainer.logger: W&B is not installed; pip install "lit_medgen[wandb]".') from error
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="",
            program="",
            root_dir=save_dir,
            save_code=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        super().__init__(
            project=project,
            save_dir=save_dir,
            group=group,
            tags=tags,
            log_model=False,
            resume="allow",
            settings=settings,
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun on first use; InputError if W&B refuses it, for want of a key or a network."""
        from wandb.errors import Error

        try:
            return super().experiment
        except Error as error:
            raise InputError(
                f"trainer.logger: W&B says: {describe(error)} Log in with `wandb login` (or set WANDB_API_KEY), keep "
                "its log on this machine with WANDB_MODE=offline, or leave the logger out."
            ) from error

    def continue_in(self, folder: Path) -> None:
        """Takes the id and name of the run that this run folder belongs to, or gives it one."""
        file = folder / "wandb_id"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(8))
        self._wandb_init |= {"id": file.read_text().strip(), "name": folder.name}
        self._id = self._wandb_init["id"]


def public(config: Any, inside: str = "") -> Any:
    """What of a config may leave the machine: numbers, switches, class names and the method's words; no other text."""
    if isinstance(config, dict):
        kept = {
            key: public(value, "model" if "model" in (key, inside) else key)
            for key, value in config.items()
            if key != "codes"  # its keys are words of the user's table
        }
        return {key: value for key, value in kept.items() if value is not None}
    if isinstance(config, list):
        return [public(value, inside) for value in config]
    if isinstance(config, str):
        return config if inside in ("model", "class_path", "precision", "axis") and os.sep not in config else None
    return config
