"""What an item's augmentation does: all of it drawn from (seed, position), then applied to what a view reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data_modules.augmentation import KEY, Augmentation, Frame, Geometric, Intensity
from data_modules.monai_transform import MonaiTransform
from data_modules.sources import IMAGE, LABEL_MAP
from data_modules.views import Read
from lit_medgen.errors import InputError
from lit_medgen.seeds import mix

DECIMALS = 9
"""Of voxel coordinates that count, so that a reflection meets voxels and not their rounding errors."""


class Augmenter:
    """The augmentation of a data set.

    Args:
        transforms: in the order in which they act, geometric ones first, since these are one resampling.
        frame: the grid of the stored images.
        seed: of the draws.
    """

    def __init__(self, transforms: Sequence[Augmentation], frame: Frame, seed: int) -> None:
        self.transforms, self.frame, self.seed = tuple(transforms), frame, seed
        kinds = [isinstance(each, Geometric) for each in transforms]
        if kinds != sorted(kinds, reverse=True):
            first = kinds.index(False)
            late = kinds.index(True, first)
            raise InputError(
                f"{KEY}: {type(transforms[late]).__name__} stands after {type(transforms[first]).__name__}; put flips, "
                "rotations, shifts and zooms first: together they are one resampling of the stored image."
            )
        for each in transforms:
            each.check(frame)

    def at(self, position: int) -> Drawn:
        """What is done to the item at a position of the run."""
        seeds = [mix("augmentation", self.seed, position, number) for number in range(len(self.transforms))]
        matrix, others = np.eye(len(self.frame.size) + 1), []
        for each, seed in zip(self.transforms, seeds, strict=True):
            if isinstance(each, Geometric):
                matrix = matrix @ each.matrix(self.frame, np.random.default_rng(seed))
            else:
                others.append((each, seed))
        return Drawn(self.frame, matrix, tuple(others))


@dataclass(frozen=True)
class Drawn:
    """What is done to one item.

    Attributes:
        frame: the grid of the stored images.
        matrix: d+1 d+1, from a point of the new image to one of the stored, mm from the middle of what is shown.
        others: what acts on values once they are read, with the seed of each.
    """

    frame: Frame
    matrix: np.ndarray
    others: tuple[tuple[Augmentation, int], ...] = ()

    def moved(self, read: Read, size: tuple[int, ...], box: Box, name: str, padding: float) -> Read:
        """Reads what the view asks for, moved.

        Args:
            read: reads an array of the image as it is stored.
            size: voxels of the array.
            box: first voxel and size of what is shown, whose middle stays where it is.
            name: of the array; label maps are read by nearest neighbour.
            padding: what stands outside the array.
        """
        if np.array_equal(self.matrix, np.eye(len(self.matrix))):
            return read
        first, shown = (np.array(each) for each in box)
        sides = self.frame.sides_mm(size)
        middle = first + (shown - 1) / 2
        linear = self.matrix[:-1, :-1] * sides / sides[:, None]
        offset = middle + self.matrix[:-1, -1] / sides - linear @ middle
        order = 0 if name == LABEL_MAP else 1

        def moved(slices: np.ndarray | None) -> np.ndarray:
            if slices is None:
                ends = np.clip(first, 0, size), np.clip(first + shown, 0, size)
                return _resampled(read(None), linear, offset, order, padding, ends)
            axes = self.frame.moving
            whole = np.zeros(len(axes), dtype=int), np.array(size)[axes]
            plane = linear[np.ix_(axes, axes)], offset[axes]
            return np.stack([_resampled(each, *plane, order, padding, whole) for each in read(slices)])

        return moved

    def changed(self, part: np.ndarray, name: str, real: np.ndarray | None, channel: int = 0) -> np.ndarray:
        """The values of what a view has read, changed.

        Args:
            part: slices n a b, or x y z or x y.
            name: of the array; of all channels of an image the image's own.
            real: n, bool: which slices are no padding, as there are sets of them; None: it is one image.
            channel: number of the channel, each of which has changes of its own but moves as the others do.
        """
        for each, seed in self.others:
            if channel and not (isinstance(each, MonaiTransform) and each.is_spatial):
                seed = mix("channel", seed, channel)
            if real is not None:
                part = part.copy()
                part[real] = self._change(each, seed, part[real], name, True) if real.any() else part[real]
            else:
                part = self._change(each, seed, part, name, False)
        return part

    @staticmethod
    def _change(each: Augmentation, seed: int, part: np.ndarray, name: str, is_stack: bool) -> np.ndarray:
        if isinstance(each, MonaiTransform):
            return each.apply(part if is_stack else part[None], seed, name).reshape(part.shape)
        assert isinstance(each, Intensity)
        return each(part, np.random.default_rng(seed), is_stack) if name == IMAGE else part


Box = tuple[tuple[int, ...], tuple[int, ...]]
"""First voxel and size of a part of an image."""


def _resampled(
    values: np.ndarray,
    linear: np.ndarray,
    offset: np.ndarray,
    order: int,
    padding: float,
    ends: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """An array of which the box between two corners is read anew, and which is `padding` elsewhere."""
    linear, begin = np.round(linear, DECIMALS + 3), ends[0]
    found = np.full(values.shape, padding, dtype=values.dtype)
    box = tuple(slice(int(low), int(high)) for low, high in zip(*ends, strict=True))
    if found[box].size:
        ndimage.affine_transform(
            values,
            linear,
            np.round(offset + linear @ begin, DECIMALS),
            output_shape=found[box].shape,
            output=found[box],
            order=order,
            mode="grid-constant",
            cval=padding,
        )
    return found
