"""Crops around the nodules of label maps, of images that were made from the maps and of real ones alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_medgen.batch import DataSpec, Images, Requests
from lit_medgen.images.nodules import inside_nodules, largest_nodule, nodule_classes

SIDE = 64
"""Pixels of a crop along each axis, as in section 5.2 of Zu 2023; those of the image where it has fewer."""
BACKGROUND = -1.0
"""Value of a crop beyond the border of its image."""


@dataclass(frozen=True)
class Nodules:
    """Where the nodules of some label maps lie.

    Attributes:
        middles: number of a map that has a nodule -> the middle of the largest, in voxels along each axis.
        classes: number of the map -> the nodule's class.
        size: voxels of a crop around a nodule.
    """

    middles: Mapping[int, tuple[float, ...]]
    classes: Mapping[int, int]
    size: tuple[int, ...]

    def around(self, images: Tensor, maps: Sequence[int]) -> Tensor:
        """Crops n c *size of images n c *s that show what these maps show."""
        pairs = zip(images, maps, strict=True)
        return torch.stack([crop(image, self.middles[number], self.size) for image, number in pairs])

    def cropped(self, images: Images, maps: Sequence[int | None]) -> Images:
        """The crops of those images whose map has a nodule.

        Args:
            images: n.
            maps: n, the number of the map that each shows; None: of none.
        """
        chosen = [(i, number) for i, number in enumerate(maps) if number in self.middles and number is not None]

        def read(indices: Sequence[int]) -> Tensor:
            some = [chosen[k] for k in indices]
            return torch.cat([self.around(images.read([i]), [number]) for i, number in some])

        return Images([images.keys[i] for i, _ in chosen], [images.people[i] for i, _ in chosen], read)

    @classmethod
    def of(
        cls, requests: Requests, spec: DataSpec, size: Sequence[int] | None = None, limit: int | None = None
    ) -> Nodules:
        """Those of the label maps of requests, which are read one after the other.

        Args:
            requests: the maps are numbered as they are.
            spec: of the data, which names the classes.
            size: of a crop; None: `SIDE` along each axis, or all of an image that is smaller.
            limit: of so many requests alone; None: of all.
        """
        numbers = nodule_classes(spec.classes) if "label_map" in requests.parts else []
        middles, classes = {}, {}
        for index in range(len(requests) if limit is None else limit) if numbers else ():
            label_map = requests.read(index).condition.label_map
            assert label_map is not None
            inside = inside_nodules(label_map, numbers)[0, 0].numpy()
            middle = largest_nodule(inside)
            if middle is not None:
                middles[index] = tuple(middle.tolist())
                classes[index] = int(label_map[0, 0].numpy()[inside].max())
        sides = tuple(min(SIDE, side) for side in spec.size) if size is None else tuple(size)
        return cls(middles, classes, sides)


def crop(image: Tensor, middle: Sequence[float], size: Sequence[int]) -> Tensor:
    """The crop c *size of an image c *s around a voxel, as `data_modules.Crop` takes it; background beyond the border.

    An axis along which the crop is as long as the image is taken as it is.
    """
    found = torch.full((len(image), *size), BACKGROUND)
    sources, aims = [slice(None)], [slice(None)]
    for length, side, place in zip(image.shape[1:], size, middle, strict=True):
        first = 0 if side == length else math.floor(place - (side - 1) / 2 + 0.5)
        low, high = max(first, 0), min(first + side, length)
        sources.append(slice(low, max(low, high)))
        aims.append(slice(low - first, max(low, high) - first))
    found[tuple(aims)] = image[tuple(sources)]
    return found
