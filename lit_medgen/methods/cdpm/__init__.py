"""cDPM (Peng et al. 2023): the method, the stages of its sampling, and a variant with a factor prior."""

from lit_medgen.methods.cdpm.cdpm import CDPM
from lit_medgen.methods.cdpm.factor_prior import FactorPriorCDPM
from lit_medgen.methods.cdpm.schemes import Autoregressive, Hierarchy, LongRange, Scheme

__all__ = ["CDPM", "Autoregressive", "FactorPriorCDPM", "Hierarchy", "LongRange", "Scheme"]
