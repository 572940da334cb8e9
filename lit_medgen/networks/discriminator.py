"""The patch discriminator and differentiable augmentation, in 2D and 3D.

Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2; Zhao et al. 2020,
"Differentiable Augmentation for Data-Efficient GAN Training", section 4. Shapes: b batch, c channels, *s spatial axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_medgen.networks.blocks import group_norm


class PatchDiscriminator(nn.Sequential):
    """Says of every patch whether it is real: a map of logits.

    Args:
        dim: 2 or 3.
        in_channels: channels of the image.
        channels: width of the first layer, doubled by each further one up to eightfold; 64 in the papers.
        num_layers: layers that halve the size; 3 in the papers.

    Groups are normalised where the papers normalise batches: theirs are of three images, and differ between processes.
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


def diff_augment(images: Tensor, random: Tensor) -> Tensor:
    """Brightness, contrast and translation, differentiable, of each image: b c *s (the paper's colour, translation).

    Args:
        images: b c *s in [-1, 1].
        random: b 2+dim, uniform in [0, 1): brightness by up to 0.5, contrast by 0.5 to 1.5, each axis by an eighth.
    """
    shape = (-1, *[1] * (images.ndim - 1))
    images = images + (random[:, 0] - 0.5).view(shape)
    mean = images.flatten(1).mean(1).view(shape)
    images = (images - mean) * (random[:, 1] + 0.5).view(shape) + mean
    return torch.stack([_moved(image, share) for image, share in zip(images, random[:, 2:].tolist(), strict=True)])


def _moved(image: Tensor, share: list[float]) -> Tensor:
    """c *s moved along each axis by up to an eighth of its length, -1 where nothing was."""
    moved = image
    for axis, part in enumerate(share, start=1):
        most = image.shape[axis] // 8
        by = round((2 * part - 1) * most)
        moved = moved.roll(by, dims=axis)
        empty = moved.narrow(axis, 0, by) if by > 0 else moved.narrow(axis, moved.shape[axis] + by, -by)
        empty.fill_(-1)
    return moved
