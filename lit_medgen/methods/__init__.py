"""Methods: one file per paper, each a `LightningModule` that reads beside it."""

from lit_medgen.methods.absorbing import Absorbing
from lit_medgen.methods.base import Generator, Method
from lit_medgen.methods.cdpm import CDPM
from lit_medgen.methods.ihdm import IHDM
from lit_medgen.methods.vqgan import VQGAN

__all__ = ["CDPM", "IHDM", "VQGAN", "Absorbing", "Generator", "Method"]
