"""Crops of latents around the largest nodule of each label map: found once on the CPU, read in every step.

Shapes: b images, d latent channels, *z axes of the latents, *k axes of a crop of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import sent
from lit_medgen.images.nodules import inside_nodules, largest_nodule


@dataclass(frozen=True)
class LatentCrops:
    """Which values of latents are those of crops.

    Attributes:
        index: b k, int64: where in its latent, flattened, each value of a crop is; anything where it lies outside.
        inside: b 1 k, bool: whether it lies in the latent.
        size: *k, axes of a crop.
        found: b, bool, on the CPU: which images have a nodule; the crops of others are anywhere.
    """

    index: Tensor
    inside: Tensor
    size: tuple[int, ...]
    found: Tensor

    def read(self, z: Tensor, background: Tensor) -> Tensor:
        """The crops b d *k of latents b d *z; outside of these the background, b d or what broadcasts to it."""
        flat = z.flatten(2)
        crops = flat.gather(2, self.index[:, None].expand(-1, flat.shape[1], -1))
        return torch.where(self.inside, crops, background[..., None]).unflatten(2, self.size)

    @classmethod
    def around_nodules(
        cls, label_map: Tensor, classes: Sequence[int], factor: int, size: Sequence[int], device: torch.device
    ) -> LatentCrops:
        """The crops around the largest nodule of each label map; never moved to fit into the latent.

        Args:
            label_map: b 1 *s, on the CPU, or this waits for its device.
            classes: those that are nodules.
            factor: voxels of an image along each axis for each of its latent.
            size: *k, of a crop of the latent.
            device: of the latents.
        """
        masks = inside_nodules(label_map.cpu(), classes)[:, 0].numpy()
        middles = [largest_nodule(mask) for mask in masks]
        latent = [side // factor for side in masks.shape[1:]]
        places = [_places(middle, latent, factor, size) for middle in middles]
        index, inside = (torch.from_numpy(np.stack(part)) for part in zip(*places, strict=True))
        found = torch.tensor([middle is not None for middle in middles])
        return cls(sent(index, device), sent(inside[:, None], device), tuple(size), found)


def _places(
    middle: np.ndarray | None, latent: Sequence[int], factor: int, size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Index in the flattened latent, k, of each value of a crop, and whether it lies inside, k."""
    voxels = np.zeros(len(size)) if middle is None else middle
    first = np.round((voxels + 0.5) / factor - np.asarray(size) / 2).astype(int)
    axes = [start + np.arange(side) for start, side in zip(first, size, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    inside = np.all([(axis >= 0) & (axis < side) for axis, side in zip(grid, latent, strict=True)], axis=0)
    index = np.ravel_multi_index(grid, tuple(latent), mode="clip")
    return index.ravel(), inside.ravel()
