"""Checkpoints in a fixed folder: `<run folder>/checkpoints/`, so that `--ckpt_path last` finds them again."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_medgen.callbacks.run_folder import run_folder
from lit_medgen.checkpoints import saved
from lit_medgen.files import remove_stale


class Checkpoints(Checkpoint):
    """Saves every n steps or minutes as step_<n>.ckpt, at the end of the run, and when a signal stops it.

    Called at the boundary after a step, when validation, logging and averaging of that step are done, so a resumed run
    repeats nothing.

    Args:
        every_n_steps: steps between two checkpoints; None: only by time.
        every_n_minutes: and at least this often; None: only by steps.
        keep: how many are kept, at least 2, so that a damaged one is not the last; -1 keeps all.
    """

    writes = ("checkpoints/*.ckpt", "checkpoints/*.sha256")

    def __init__(self, every_n_steps: int | None = 1000, every_n_minutes: float | None = None, keep: int = 2) -> None:
        if keep != -1 and keep < 2:
            raise ValueError(f"Checkpoints.keep is {keep}; give at least 2, or -1 for all.")
        if every_n_steps is None and every_n_minutes is None:
            raise ValueError("Checkpoints: every_n_steps and every_n_minutes are both null; give one of them.")
        self.every_n_steps, self.every_n_minutes, self.keep = every_n_steps, every_n_minutes, keep
        self._saved_at = -1
        self._clock = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Clears what a kill in the middle of a save has left behind."""
        self.folder = run_folder(trainer) / "checkpoints"
        if stage == "fit" and trainer.is_global_zero and self.folder.is_dir():
            remove_stale(self.folder, single_writer=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that ends where it resumed has nothing to save."""
        self._saved_at = trainer.global_step if trainer.ckpt_path else -1
        self._clock = time.monotonic()

    def due(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is due after this step; by time, processes may differ."""
        step, minutes = trainer.global_step, (time.monotonic() - self._clock) / 60
        return (
            trainer.should_stop
            or step == trainer.max_steps
            or (self.every_n_steps is not None and step > 0 and step % self.every_n_steps == 0)
            or (self.every_n_minutes is not None and minutes >= self.every_n_minutes)
        )

    def save(self, trainer: Trainer) -> Path:
        """Saves, unless this step is saved already; called by all processes together."""
        path = self.folder / f"step_{trainer.global_step:07d}.ckpt"
        if trainer.global_step != self._saved_at:
            for logger in trainer.loggers:
                logger.save()  # a resumed run goes on after the last row of before
            trainer.save_checkpoint(path, weights_only=False)
            self._saved_at, self._clock = trainer.global_step, time.monotonic()
            if self.keep > 0 and trainer.is_global_zero:
                for old in saved(self.folder)[self.keep :]:
                    trainer.strategy.remove_checkpoint(old)
        return path
