"""VDM (Rguibi et al. 2023): the method, and the figures of its bound."""

from lit_medgen.methods.vdm.vdm import VDM

__all__ = ["VDM"]
