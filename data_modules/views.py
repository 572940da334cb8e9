"""Views: which part of a stored image an item shows, for training and for evaluation.

A whole volume (or 2D image), one of its slices (2D methods), sets C (given) and P (target) of its slices (cDPM), or a
crop. The label map and the other sources of an image are read through the view of the image.

A draw is a pure function of its generator, which the data set seeds from (seed, position), so what is shown is known
before a file is read and a resumed run draws the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from data_modules.records import Record
from lit_medgen.axes import AXES
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError

Selection = TypeVar("Selection")
"""What names a part of an image: the number of a slice, a set of slices, the first voxel of a crop."""
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
"""Code of the direction of an axis -> that of the other way."""
Read = Callable[[np.ndarray | None], np.ndarray]
"""Numbers of slices -> n a b, those slices alone, the axes left in the order x y z; None -> the image x y z or x y."""


@dataclass(frozen=True)
class Grid:
    """The voxels of a stored image."""

    size: tuple[int, ...]  # along x, y, z, or along x, y of a 2D image
    axis: str  # "axial", "coronal" or "sagittal", along which its slices are stacked; "" for 2D images

    @property
    def stacked(self) -> int:
        """The axis along which slices are stacked, 0 to 2; 0 for 2D images."""
        return AXES[self.axis] if self.axis else 0

    @property
    def num_slices(self) -> int:
        """Slices along that axis."""
        return self.size[self.stacked]

    @property
    def plane(self) -> list[int]:
        """The axes in the plane of a slice."""
        return [axis for axis in range(len(self.size)) if axis != self.stacked]


class View(ABC, Generic[Selection]):
    """Which part of a stored image an item shows."""

    reads_slices: bool = False
    """Whether training items are slices, in whose plane alone an augmentation can move things."""

    @abstractmethod
    def spec(self, stored: DataSpec, axis: str) -> DataSpec:
        """The facts of the items from those of the stored images; InputError if the view does not fit them."""

    @abstractmethod
    def draw(self, grid: Grid, record: Record, random: np.random.Generator) -> Selection:
        """The part of an image that a training item shows."""

    @abstractmethod
    def evaluated(self, grid: Grid, record: Record) -> Sequence[Selection]:
        """The parts of an image that evaluation looks at."""

    def every(self, grid: Grid, record: Record) -> Sequence[Selection]:
        """All parts of an image that training can see, for a latent store; InputError if they cannot be listed."""
        return self.evaluated(grid, record)

    @abstractmethod
    def read(self, read: Read, grid: Grid, selection: Selection, padding: float) -> np.ndarray:
        """The part of an image, n h w or x y z or x y; `padding` where the view leaves the image or holds no slice."""

    def box(self, grid: Grid, selection: Selection) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First voxel and size of the part, around whose middle an augmentation moves it; of slices those of all."""
        return (0,) * len(grid.size), grid.size

    def affine(self, affine: np.ndarray, grid: Grid, selection: Selection) -> np.ndarray:
        """Voxel to world of the part from that of the image, 4 4; a set of slices keeps that of the volume."""
        return affine

    def name(self, selection: Selection) -> str:
        """What follows an image's key in the name of the part; "" where evaluation looks at one part of an image."""
        return ""

    def slice_index(self, selection: Selection) -> np.ndarray | None:
        """n, int64: the numbers of the slices shown; None where items are no slices."""
        return None

    def observed(self, selection: Selection) -> np.ndarray | None:
        """n, bool: which of the slices shown are given; None where none ever is."""
        return None

    def num_voxels(self, grid: Grid) -> int:
        """Voxels of an item."""
        return math.prod(grid.size)


class Volume(View[None]):
    """The whole volume, or the whole 2D image."""

    def spec(self, stored: DataSpec, axis: str) -> DataSpec:
        """The facts of the stored images."""
        return stored

    def draw(self, grid: Grid, record: Record, random: np.random.Generator) -> None:
        """None, which stands for the whole image."""

    def evaluated(self, grid: Grid, record: Record) -> Sequence[None]:
        """None, which stands for the whole image."""
        return [None]

    def read(self, read: Read, grid: Grid, selection: None, padding: float) -> np.ndarray:
        """The image x y z or x y."""
        return read(None)


class OneSlice(View[int]):
    """A single slice as an image in 2D, every one of the middle slices as likely as the others.

    Args:
        middle: how many of the middle slices are used; None: all.
        per_person: how many slices of a person evaluation looks at, evenly spread over those used.
    """

    reads_slices = True

    def __init__(self, middle: int | None = None, per_person: int = 4) -> None:
        for name, value in (("middle", middle), ("per_person", per_person)):
            if value is not None and value < 1:
                raise ValueError(f"view.init_args.{name} is {value}; give at least 1.")
        self.middle, self.per_person = middle, per_person

    def spec(self, stored: DataSpec, axis: str) -> DataSpec:
        """Images of the plane's size."""
        grid = grid_of_slices(stored, axis)
        self.evaluated_of(grid.num_slices)  # refused here, before a worker does
        return replace(
            stored,
            size=tuple(stored.size[axis] for axis in grid.plane),
            spacing_mm=tuple(stored.spacing_mm[axis] for axis in grid.plane),
            orientation=stored.orientation[grid.plane[0]] + OPPOSITE[stored.orientation[grid.plane[1]]],
            source_size=tuple(stored.source_size[axis] for axis in grid.plane) if stored.source_size else (),
        )

    def used(self, num_slices: int) -> np.ndarray:
        """The slices that can be drawn, in order; InputError if there are fewer than `middle`."""
        middle = self.middle or num_slices
        if middle > num_slices:
            raise InputError(f"data.init_args.view.init_args.middle is {middle}, but there are {num_slices} slices.")
        return np.arange(middle) + (num_slices - middle) // 2

    def evaluated_of(self, num_slices: int) -> np.ndarray:
        """The slices of each person that evaluation looks at: the middles of equal parts of those used."""
        used = self.used(num_slices)
        if self.per_person > len(used):
            raise InputError(
                f"data.init_args.view.init_args.per_person is {self.per_person}, but {len(used)} slices are used."
            )
        return used[((np.arange(self.per_person) + 0.5) / self.per_person * len(used)).astype(int)]

    def draw(self, grid: Grid, record: Record, random: np.random.Generator) -> int:
        """The number of a slice."""
        return int(random.choice(self.used(grid.num_slices)))

    def evaluated(self, grid: Grid, record: Record) -> Sequence[int]:
        """As many as `per_person`."""
        return self.evaluated_of(grid.num_slices).tolist()

    def every(self, grid: Grid, record: Record) -> Sequence[int]:
        """All that can be drawn."""
        return self.used(grid.num_slices).tolist()

    def read(self, read: Read, grid: Grid, selection: int, padding: float) -> np.ndarray:
        """Along the plane's first axis, and against its second, which in every 2D image goes down: so up stays up."""
        return read(np.array([selection]))[0, :, ::-1]

    def affine(self, affine: np.ndarray, grid: Grid, selection: int) -> np.ndarray:
        """Of the slice as an image x y, 4 4."""
        across, down = grid.plane
        first = np.zeros(3)
        first[grid.stacked], first[down] = selection, grid.size[down] - 1
        found = np.eye(4)
        found[:3, 0], found[:3, 1], found[:3, 2] = affine[:3, across], -affine[:3, down], affine[:3, grid.stacked]
        found[:3, 3] = affine[:3, :3] @ first + affine[:3, 3]
        return found

    def name(self, selection: int) -> str:
        """Its number, in four digits."""
        return f"-{selection:04d}"

    def slice_index(self, selection: int) -> np.ndarray:
        """The number of the slice, as an array of one."""
        return np.array([selection])

    def num_voxels(self, grid: Grid) -> int:
        """Voxels of a slice."""
        return math.prod(grid.size) // grid.num_slices


class Crop(View[tuple[int, ...]]):
    """A box of voxels, around a point that is known of an image or anywhere in it.

    Where the box leaves the image it is filled with background; it is never shifted to fit.

    Args:
        size: voxels along x, y, z, or x, y of 2D images.
        centre: name of the fact of a record that is the box's middle, in voxels (LIDC-IDRI: `nodule`). Images of
            which it is not known, and all images if no name is given, are cropped anywhere, every box that lies in
            the image as likely, and in their middle where evaluation looks.
    """

    def __init__(self, size: tuple[int, ...], centre: str | None = None) -> None:
        if len(size) not in (2, 3) or min(size) < 1:
            raise ValueError(f"view.init_args.size is {list(size)}; give two or three numbers, each at least 1.")
        self.size, self.centre = tuple(size), centre

    def spec(self, stored: DataSpec, axis: str) -> DataSpec:
        """Images of the box's size."""
        if len(self.size) != len(stored.size):
            raise InputError(
                f"data.init_args.view.init_args.size is {list(self.size)}; give {len(stored.size)} numbers, as the "
                f"images are {' x '.join(map(str, stored.size))}."
            )
        if stored.source_size not in ((), stored.size):
            raise InputError(
                f"data.init_args.view: a crop needs sources of the images' size, {list(stored.size)}; theirs is "
                f"{list(stored.source_size)}."
            )
        return replace(stored, size=self.size, source_size=self.size if stored.source_size else ())

    def draw(self, grid: Grid, record: Record, random: np.random.Generator) -> tuple[int, ...]:
        """The box's first voxel, which may lie outside."""
        if (centre := self._known(record)) is not None:
            return self._around(centre)
        return tuple(
            int(random.integers(min(0, whole - side), max(0, whole - side) + 1))
            for whole, side in zip(grid.size, self.size, strict=True)
        )

    def evaluated(self, grid: Grid, record: Record) -> Sequence[tuple[int, ...]]:
        """The box around the known point, or in the middle."""
        centre = self._known(record)
        return [self._around((np.array(grid.size) - 1) / 2 if centre is None else centre)]

    def every(self, grid: Grid, record: Record) -> Sequence[tuple[int, ...]]:
        """The box around the known point."""
        if (centre := self._known(record)) is None:
            raise InputError(
                f"data.init_args.view: crops anywhere in an image cannot be listed, as latents of them would have to "
                f"be; give a view.init_args.centre that is known of all images (now {self.centre})."
            )
        return [self._around(centre)]

    def read(self, read: Read, grid: Grid, selection: tuple[int, ...], padding: float) -> np.ndarray:
        """The box, x y z or x y."""
        whole = read(None)
        found = np.full(self.size, padding, dtype=whole.dtype)
        ends = [
            (max(0, first), min(all_of_it, first + side))
            for first, all_of_it, side in zip(selection, whole.shape, self.size, strict=True)
        ]
        if all(begin < end for begin, end in ends):
            inner = tuple(slice(b - first, e - first) for (b, e), first in zip(ends, selection, strict=True))
            found[inner] = whole[tuple(slice(*end) for end in ends)]
        return found

    def box(self, grid: Grid, selection: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The box itself, which may leave the image."""
        return selection, self.size

    def affine(self, affine: np.ndarray, grid: Grid, selection: tuple[int, ...]) -> np.ndarray:
        """The same, moved to the box's first voxel."""
        moved = affine.copy()
        moved[:3, 3] = affine[:3, : len(selection)] @ selection + affine[:3, 3]
        return moved

    def num_voxels(self, grid: Grid) -> int:
        """Voxels of the box."""
        return math.prod(self.size)

    def _known(self, record: Record) -> np.ndarray | None:
        """The point, in voxels; None where it is not known."""
        if self.centre is None:
            return None
        if self.centre not in record.facts:
            known = ", ".join(record.facts) or "none"
            raise InputError(f"data.init_args.view.init_args.centre is '{self.centre}'; facts of the images: {known}.")
        centre = record.facts[self.centre]
        if np.shape(centre) != np.shape(self.size):
            raise InputError(
                f"data.init_args.view.init_args.centre is '{self.centre}', which has {np.size(centre)} numbers, not "
                f"the {len(self.size)} of a point; give another fact."
            )
        return centre if np.isfinite(centre).all() else None

    def _around(self, centre: np.ndarray) -> tuple[int, ...]:
        """The first voxel of the box; of an even number of voxels the middle lies between two."""
        return tuple(math.floor(middle - (side - 1) / 2 + 0.5) for middle, side in zip(centre, self.size, strict=True))


def grid_of_slices(stored: DataSpec, axis: str) -> Grid:
    """The voxels of images with slices along an axis; InputError if they are 2D or their sources have other slices."""
    if len(stored.size) != 3:
        raise InputError("data.init_args.view shows slices, but the images are 2D; set it to null.")
    grid = Grid(stored.size, axis)
    if stored.source_size and stored.source_size[grid.stacked] != grid.num_slices:
        raise InputError(
            f"data.init_args.view: slices need sources with as many {grid.axis} slices as the images, "
            f"{grid.num_slices}; theirs are {stored.source_size[grid.stacked]}."
        )
    return grid
