"""Crops of latents around the largest nodule of each label map: found once on the CPU, read in every step.

Shapes: b images, d latent channels, *z axes of the latents, *k axes of a crop of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Batch, sent
from lit_medgen.images.nodules import inside_nodules, largest_nodule
from lit_medgen.training.latents import LatentStore


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


@dataclass(frozen=True)
class NoduleCrops:
    """Cuts what a first stage keeps of whole images around the largest nodule of each label map.

    Attributes:
        classes: those that are nodules.
        factor: voxels of an image along each axis for each of its latent.
        size: *k, of a crop.
        background: 1 ... *z, what is kept of an image of background, whose middle stands where a crop leaves an image.
    """

    classes: Sequence[int]
    factor: int
    size: Sequence[int]
    background: Tensor

    def __call__(self, kept: Tensor, batch: Batch) -> Tensor:
        """The crops b ... *k of b ... *z, codes or maps of channels; a label map on a device is waited for."""
        assert batch.condition.label_map is not None
        crops = LatentCrops.around_nodules(batch.condition.label_map, self.classes, self.factor, self.size, kept.device)
        middle = self.background
        for _ in self.size:
            middle = middle.select(-1, middle.shape[-1] // 2)
        has_channels = kept.ndim > 1 + len(self.size)
        middle = sent(middle.reshape(1, -1), kept.device)
        found = crops.read(kept if has_channels else kept[:, None], middle)
        return found if has_channels else found[:, 0]


@dataclass(frozen=True)
class StoredCrops:
    """Crops of a latent store, cut where its rows are read: in the loader's workers, before a device is waited for.

    Attributes:
        store: the latents of whole images.
        crops: what cuts them.
    """

    store: LatentStore
    crops: NoduleCrops

    def __call__(self, batch: Batch) -> Tensor:
        """The crops of a batch's rows."""
        return self.crops(self.store(batch), batch)


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
