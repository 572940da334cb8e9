"""LSDM (Zu 2023): the method, its guidance inside the nodule, and what a report shows of that."""

from lit_medgen.methods.lsdm.lsdm import LSDM
from lit_medgen.methods.lsdm.nodule_guidance import Wish

__all__ = ["LSDM", "Wish"]
