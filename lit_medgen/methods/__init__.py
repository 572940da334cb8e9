"""Methods: one file per paper, each a `LightningModule` that reads beside it."""

from lit_medgen.methods.absorbing import Absorbing
from lit_medgen.methods.autoencoder_kl import AutoencoderKL
from lit_medgen.methods.autoregressive import Autoregressive
from lit_medgen.methods.cdpm.cdpm import CDPM
from lit_medgen.methods.cdpm.factor_prior import FactorPriorCDPM
from lit_medgen.methods.controlnet import ControlNet
from lit_medgen.methods.crop_classifier import CropClassifier
from lit_medgen.methods.ddpm import DDPM
from lit_medgen.methods.gans.alpha_wgan import AlphaWGAN
from lit_medgen.methods.gans.ccegan import CCEGAN
from lit_medgen.methods.gans.hagan import HAGAN
from lit_medgen.methods.gans.spade_gan import SPADEGAN
from lit_medgen.methods.gans.vaegan import VAEGAN
from lit_medgen.methods.gans.wgan import WGAN
from lit_medgen.methods.ihdm import IHDM
from lit_medgen.methods.ldm import LDM
from lit_medgen.methods.lsdm import LSDM
from lit_medgen.methods.upscaler import Upscaler
from lit_medgen.methods.vdm import VDM
from lit_medgen.methods.vqgan import VQGAN
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method

__all__ = [
    "CCEGAN",
    "CDPM",
    "DDPM",
    "HAGAN",
    "IHDM",
    "LDM",
    "LSDM",
    "SPADEGAN",
    "VAEGAN",
    "VDM",
    "VQGAN",
    "WGAN",
    "Absorbing",
    "AlphaWGAN",
    "AutoencoderKL",
    "Autoregressive",
    "ControlNet",
    "CropClassifier",
    "FactorPriorCDPM",
    "Generator",
    "Method",
    "Upscaler",
]
