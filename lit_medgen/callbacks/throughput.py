"""Throughput and peak memory, logged beside the loss."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs steps and samples per second and peak memory in GiB every n steps.

    Args:
        every_n_steps: steps between two figures.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._since: tuple[int, int, float] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures over the steps since the last figure; the first interval starts after the first step."""
        step, num_batches, now = trainer.global_step, trainer.fit_loop.epoch_loop.total_batch_idx, time.monotonic()
        if self._since is None:
            self._since = (step, num_batches, now)
        elif step - self._since[0] >= self.every_n_steps:
            seconds = now - self._since[2]
            num_samples = (num_batches - self._since[1]) * len(batch.image) * trainer.world_size
            pl_module.log_dict(
                {
                    "train/steps_per_second": (step - self._since[0]) / seconds,
                    "train/samples_per_second": num_samples / seconds,
                    "train/peak_memory_gib": peak_memory_gib(pl_module.device),
                }
            )
            self._since = (step, num_batches, now)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory used so far: of the accelerator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
