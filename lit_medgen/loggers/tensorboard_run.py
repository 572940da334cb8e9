"""A TensorBoard log in the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_medgen.loggers.in_run_folder import LoggerInRunFolder


class TensorBoardRun(LoggerInRunFolder):
    """A TensorBoard log, `tensorboard/` in the run folder, of losses, scores and sample grids.

    Every start of the run writes an event file of its own. That of a resumed run tells TensorBoard from which step on
    the files before no longer count.
    """

    title, extra, packages = "TensorBoard", "tensorboard", ("tensorboard",)
    writes = ("tensorboard/events.*",)

    def __init__(self) -> None:
        super().__init__()
        self._writer: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `SummaryWriter`, made on first use."""
        return self._writer or self._open(None)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Writes from here on to a new file, which hides what earlier ones have from this step on."""
        if self._writer:
            self._writer.close()
        self._writer = None
        if any((self.folder / "tensorboard").glob("events.*")):
            self._open(step)

    def _open(self, purge_step: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # an extra

        self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge_step)
        return self._writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers at a step."""
        for name, value in metrics.items():
            self.experiment.add_scalar(name, float(value), step)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[np.ndarray], step: int) -> None:
        """Logs pictures, uint8 of rows columns or rows columns colours, under one name."""
        for n, image in enumerate(images):
            name = key if len(images) == 1 else f"{key}/{n}"
            self.experiment.add_image(name, image, step, dataformats="HWC"[: image.ndim])

    @rank_zero_only
    def save(self) -> None:
        """Writes to disk what was logged."""
        if self._writer:
            self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file; what is logged later opens another."""
        if self._writer:
            self._writer.close()
        self._writer = None
