"""Networks: parametrised functions in 2D and 3D. PyTorch and einops only; no Lightning, no diffusion."""

from lit_medgen.networks.slice_unet import SliceUNet
from lit_medgen.networks.unet import UNet

__all__ = ["SliceUNet", "UNet"]
