"""Methods: one file per paper, each a `LightningModule` that reads beside it."""

from lit_medgen.methods.base import Generator, Method
from lit_medgen.methods.cdpm import CDPM

__all__ = ["CDPM", "Generator", "Method"]
