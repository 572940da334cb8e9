"""Callbacks that note which samples every step was made of, and whether processes hold the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_medgen.batch import Batch
from lit_medgen.training.frozen import weights_hash


class Recorder(Callback):
    """Appends `step rank keys` to a file of each process.

    Args:
        folder: where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Called by Lightning after every step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"rank_{trainer.global_rank}").open("a") as file:
            file.write(f"{trainer.global_step} {trainer.global_rank} {' '.join(batch.key)}\n")


class Buffers(Callback):
    """Appends the hash of all weights and buffers after every step to `<folder>/rank_<n>`.

    Args:
        folder: where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Called by Lightning after every step."""
        with (self.folder / f"rank_{trainer.global_rank}").open("a") as file:
            file.write(f"{weights_hash(pl_module)}\n")


def recorded(folder: Path) -> list[str]:
    """All keys in the order of steps and, within a step, of processes."""
    lines = [line.split() for file in folder.glob("rank_*") for line in file.read_text().splitlines()]
    return [key for line in sorted(lines, key=lambda line: (int(line[0]), int(line[1]))) for key in line[2:]]
