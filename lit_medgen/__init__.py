"""lit_medgen: train, sample, evaluate and audit generative models of medical images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_medgen.methods import Method

__version__ = "0.1.0"


def load(path: str | Path) -> Method:
    """The trained method of a checkpoint, with its averaged weights, in evaluation mode; ready to sample."""
    from lit_medgen.checkpoints import load  # here, so that importing the package stays cheap

    return load(path)
