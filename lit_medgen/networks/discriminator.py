"""The patch discriminator and differentiable augmentation, in 2D and 3D.

Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2; Zhao et al. 2020,
"Differentiable Augmentation for Data-Efficient GAN Training", section 4. Shapes: b batch, c channels, *s spatial axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.networks.blocks import group_norm


class PatchDiscriminator(nn.Sequential):
    """A map of logits from an image, b c *s -> b 1 *z: one for each patch, high where the patch seems real.

    Args:
        dim: 2 or 3.
        in_channels: channels of the image.
        channels: width of the first layer, doubled by each further one up to eightfold; 64 in the papers.
        num_layers: layers that halve the size; 3 in the papers.

    It has group normalisation where the papers have batch normalisation: a batch of theirs holds three images, and each
    process normalises another batch.
    """

    def __init__(self, dim: int = 2, in_channels: int = 1, channels: int = 64, num_layers: int = 3) -> None:
        kind = {2: nn.Conv2d, 3: nn.Conv3d}[dim]
        layers: list[nn.Module] = [kind(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, num_layers + 1):
            wider, stride = channels * min(2**layer, 8), 2 if layer < num_layers else 1
            layers += [
                kind(width, wider, 4, stride=stride, padding=1, bias=False),
                group_norm(wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        super().__init__(*layers, kind(width, 1, 4, stride=1, padding=1))
        self.in_channels = in_channels


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """Hinge loss of a discriminator from its logits of real and made images (Lim & Ye 2017, section 2), a scalar."""
    return (functional.relu(1 - real).mean() + functional.relu(1 + made).mean()) / 2


def diff_augment(images: Tensor, random: Tensor) -> Tensor:
    """Images of random brightness, contrast and translation, b c *s; differentiable (the paper's colour, translation).

    Args:
        images: b c *s in [-1, 1].
        random: b 2+dim, uniform in [0, 1): changes the brightness by up to 0.5, multiplies the contrast by 0.5 to 1.5,
            and moves the image along each axis by up to an eighth of its length.
    """
    shape = (-1, *[1] * (images.ndim - 1))
    images = images + (random[:, 0] - 0.5).view(shape)
    mean = images.flatten(1).mean(1).view(shape)
    images = (images - mean) * (random[:, 1] + 0.5).view(shape) + mean
    for axis in range(2, images.ndim):
        images = _moved(images, axis, random[:, axis])
    return images


def _moved(images: Tensor, axis: int, share: Tensor) -> Tensor:
    """Images moved along an axis by (2 share - 1) / 8 of its length, in whole voxels, with -1 where nothing was.

    All are moved at once and by index, so that the CPU need not wait for the distances. Shapes: b c *s; share: b.
    """
    length = images.shape[axis]
    by = ((2 * share - 1) * (length // 8)).round().long()
    source = torch.arange(length, device=images.device) - by[:, None]  # b n
    along = (len(images), *(length if i == axis else 1 for i in range(1, images.ndim)))
    moved = images.gather(axis, (source % length).view(along).expand_as(images))
    return moved.masked_fill(((source < 0) | (source >= length)).view(along), -1)
