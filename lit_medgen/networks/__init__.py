"""Networks: parametrised functions in 2D and 3D. PyTorch and einops only; no Lightning, no diffusion."""

from lit_medgen.networks.autoencoder import Autoencoder
from lit_medgen.networks.conditioning import ConditionEncoder, Covariates
from lit_medgen.networks.discriminator import PatchDiscriminator
from lit_medgen.networks.factor_prior_slice_unet import FactorPriorSliceUNet
from lit_medgen.networks.orderings import Ordering
from lit_medgen.networks.protocols import (
    AdversarialNetwork,
    AutoencodingNetwork,
    Discriminator,
    ImageAutoencoder,
    LabelNetwork,
    LatentNetwork,
    SliceNetwork,
)
from lit_medgen.networks.quantizer import FSQ, NearestNeighbour, Quantizer
from lit_medgen.networks.score_resnet import DenseAutoencoder, FourierFeatures, ScoreResNet
from lit_medgen.networks.semantic_unet import SemanticUNet
from lit_medgen.networks.slice_unet import SliceUNet
from lit_medgen.networks.transformer import CausalTransformer, CodeTransformer
from lit_medgen.networks.unet import UNet
from lit_medgen.networks.unet_encoder import UNetEncoder

__all__ = [
    "FSQ",
    "AdversarialNetwork",
    "Autoencoder",
    "AutoencodingNetwork",
    "CausalTransformer",
    "CodeTransformer",
    "ConditionEncoder",
    "Covariates",
    "DenseAutoencoder",
    "Discriminator",
    "FactorPriorSliceUNet",
    "FourierFeatures",
    "ImageAutoencoder",
    "LabelNetwork",
    "LatentNetwork",
    "NearestNeighbour",
    "Ordering",
    "PatchDiscriminator",
    "Quantizer",
    "ScoreResNet",
    "SemanticUNet",
    "SliceNetwork",
    "SliceUNet",
    "UNet",
    "UNetEncoder",
]
