"""What loggers share that write into the run folder alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger

from lit_medgen.errors import InputError


class LoggerInRunFolder(Logger):
    """A logger whose files lie in the run folder, and which a resumed run continues without a step twice.

    InputError where a package is missing that it needs.
    """

    title = ""
    """What users call the program that shows the log."""
    extra = ""
    """Our extra that installs it."""
    packages: tuple[str, ...] = ()
    """What must be installed."""
    folder = Path()
    """The run folder."""

    def __init__(self) -> None:
        super().__init__()
        if missing := [package for package in self.packages if find_spec(package) is None]:
            raise InputError(
                f"trainer.logger: {self.title} needs {missing[0]}, which is not installed; "
                f'pip install "lit_medgen[{self.extra}]", or leave the logger out.'
            )

    def log_into(self, folder: Path) -> None:
        """Takes the run folder; called by the trainer before anything is logged."""
        self.folder = folder

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.name

    @property
    def version(self) -> str:
        """Empty: a run folder holds one run."""
        return ""

    @abstractmethod
    def rewind(self, step: int) -> None:
        """Drops what was logged from this step on: a run that was killed after its last checkpoint logs it again."""

    @abstractmethod
    def log_image(self, key: str, images: Sequence[np.ndarray], step: int) -> None:
        """Logs pictures, uint8 of rows columns or rows columns colours, under one name."""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Logs nothing: `config.yaml` in the same folder says how the run was made."""
