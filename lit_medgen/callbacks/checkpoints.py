"""Checkpoints at a fixed place: `<run folder>/checkpoints/`, so that `--ckpt_path last` finds them again."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_medgen.callbacks.run_folder import run_folder


class Checkpoints(ModelCheckpoint):
    """Saves every n steps as step_<n>.ckpt, and the newest as last.ckpt.

    Args:
        every_n_steps: steps between two checkpoints.
        keep: how many numbered ones are kept; -1 keeps all.
    """

    def __init__(self, every_n_steps: int = 1000, keep: int = 2) -> None:
        # With `monitor="step"` the highest step counts as the best, so `keep` keeps the newest.
        super().__init__(
            filename="step_{step:07.0f}",
            auto_insert_metric_name=False,
            monitor="step" if keep > 0 else None,
            mode="max",
            save_top_k=keep,
            save_last=True,
            enable_version_counter=False,  # a last.ckpt that is already there is this run's, and is replaced
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fixes the folder before Lightning looks for `last`."""
        self.dirpath = str(run_folder(trainer) / "checkpoints")
        super().setup(trainer, pl_module, stage)
