"""lit_medgen: train, sample, evaluate and audit generative models of medical images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_medgen.methods import Method

__version__ = "0.1.0"


def load(path: str | Path, trust: str | Iterable[str] = ()) -> Method:
    """The trained method of a checkpoint, with its averaged weights, in evaluation mode; ready to sample.

    Args:
        path: the checkpoint.
        trust: packages of your own whose classes it may name, e.g. ["mine"]; importing them runs their code.
    """
    from lit_medgen.training.method import Method  # here, so that importing the package stays cheap

    return Method.load_from_checkpoint(path, trust)
