"""cDPM (Peng et al. 2023): the method, and in which stages it makes the slices of a volume."""

from lit_medgen.methods.cdpm.cdpm import CDPM
from lit_medgen.methods.cdpm.schemes import Autoregressive, Hierarchy, LongRange, Scheme

__all__ = ["CDPM", "Autoregressive", "Hierarchy", "LongRange", "Scheme"]
