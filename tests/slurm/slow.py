"""A callback that jobs under test name in their config."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Slow(Callback):
    """Makes steps long enough to be hit, writes down the steps taken, and raises where it is told to.

    Args:
        folder: where the file `step` goes.
        seconds: sleep in every step.
        fail_rank: the process that raises.
        fail_step: the step at whose begin it raises; -1: never.
    """

    def __init__(self, folder: str, seconds: float, fail_rank: int = 0, fail_step: int = -1) -> None:
        self.folder, self.seconds, self.fail_rank, self.fail_step = Path(folder), seconds, fail_rank, fail_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.fail_rank, self.fail_step):
            raise RuntimeError("planted fault")
        time.sleep(self.seconds)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_global_zero:
            (self.folder / "step").write_text(str(trainer.global_step))
