"""Networks of the GANs that the papers compare with, in 2D and 3D, for images of any size."""

from lit_medgen.networks.gans.convolutional import CodeDiscriminator, ConvDiscriminator, ConvEncoder, ConvGenerator
from lit_medgen.networks.gans.families import ConvAutoencodingGAN, ConvGAN
from lit_medgen.networks.gans.hierarchical import HierarchicalGAN
from lit_medgen.networks.gans.sizes import Halvings
from lit_medgen.networks.gans.spade import SemanticGAN

__all__ = [
    "CodeDiscriminator",
    "ConvAutoencodingGAN",
    "ConvDiscriminator",
    "ConvEncoder",
    "ConvGAN",
    "ConvGenerator",
    "Halvings",
    "HierarchicalGAN",
    "SemanticGAN",
]
