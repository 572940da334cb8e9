"""Augmentation: random changes of training images, each a pure function of (seed, position in the run).

Geometric transforms move image, label map and source alike, in mm around the middle of what is shown; several become
one resampling, linear for images, nearest for classes. Intensity transforms change the image alone, in [-1, 1], where
-1 is background. Strength 0 is the identity, to the bit. Of slices (`OneSlice`, the sets of cDPM) one draw moves all of
an item, in their plane. Shapes: x y z of volumes, x y of 2D images, n a b of n slices.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, product
from typing import Literal

import numpy as np

from lit_medgen.errors import InputError

KEY = "data.init_args.augmentation"
AXES: dict[str, int] = {"x": 0, "y": 1, "z": 2}
DEGREE = 3
"""Of the polynomial that a bias field is the exponential of."""


@dataclass(frozen=True)
class Frame:
    """The grid of the images that are augmented.

    Attributes:
        size: voxels along x, y, z, or x, y of 2D images.
        spacing_mm: of a voxel along each; NaN where pixels have no size.
        stacked: axis of the slices that are shown, along which nothing moves; None: whole images are shown.
    """

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    stacked: int | None = None

    @property
    def moving(self) -> list[int]:
        """The axes along which things move."""
        return [axis for axis in range(len(self.size)) if axis != self.stacked]

    @property
    def is_sized(self) -> bool:
        """Whether voxels have a size in mm."""
        return bool(np.isfinite(self.spacing_mm).all())

    def sides_mm(self, size: tuple[int, ...]) -> np.ndarray:
        """Sides of a voxel, mm, of an image of another size that shows the same; pixels without a size are of 1 mm."""
        spacing = np.array(self.spacing_mm) if self.is_sized else np.ones(len(self.size))
        return spacing * self.size / np.array(size)


class Augmentation:
    """A random change of a training image."""

    def check(self, frame: Frame) -> None:
        """InputError if images of this grid cannot be changed so; called before anything is prepared."""
        return

    def described(self) -> str:
        """The class and its arguments, by which a resumed run knows its augmentation."""
        arguments = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in arguments.items())})"

    def _refuse(self, name: str, value: object, expected: str) -> None:
        """ValueError for an argument."""
        raise ValueError(f"{KEY}: {type(self).__name__}: {name} is {value}; give {expected}.")

    def _require_strength(self, name: str, value: float, high: float = math.inf) -> None:
        if not 0 <= value <= high:
            self._refuse(name, value, "0 or more" if high == math.inf else f"0 to {high:g}")


class Geometric(Augmentation, ABC):
    """A random affine map of the world around the middle of what is shown."""

    @abstractmethod
    def matrix(self, frame: Frame, random: np.random.Generator) -> np.ndarray:
        """d+1 d+1: where a point of the new image, in mm from the middle, lies in the old one."""


class Intensity(Augmentation, ABC):
    """A random change of the image's values, the same for all slices of an item."""

    @abstractmethod
    def __call__(self, image: np.ndarray, random: np.random.Generator, is_stack: bool = False) -> np.ndarray:
        """The changed image, of the same shape, float32 in [-1, 1].

        Args:
            image: x y z or x y; slices n a b.
            random: of this item and transform.
            is_stack: whether these are slices, to each of which the same is done.
        """


class Flip(Geometric):
    """Mirrors the image along an axis.

    Args:
        axis: x (left and right in RAS), y (back and front) or z; of 2D images x is across and y down.
        probability: of being mirrored.
    """

    def __init__(self, axis: Literal["x", "y", "z"] = "x", probability: float = 0.5) -> None:
        self._require_strength("probability", probability, 1)
        self.axis, self.probability = axis, probability

    def check(self, frame: Frame) -> None:
        """InputError for an axis that images do not have, or along which slices are stacked."""
        if AXES[self.axis] not in frame.moving:
            there = ", ".join(name for name, axis in AXES.items() if axis in frame.moving)
            what = "slices are stacked along it" if AXES[self.axis] == frame.stacked else "images are 2D"
            raise InputError(f"{KEY}: Flip: axis is {self.axis}, but {what}; give one of {there}.")

    def matrix(self, frame: Frame, random: np.random.Generator) -> np.ndarray:
        """A reflection, or the identity."""
        found = np.eye(len(frame.size) + 1)
        if random.random() < self.probability:
            found[AXES[self.axis], AXES[self.axis]] = -1
        return found


class Rotation(Geometric):
    """Turns the image: slices and 2D images in their plane, volumes around x, y and z.

    Args:
        degrees: greatest angle, either way; every angle is as likely.
    """

    def __init__(self, degrees: float = 5.0) -> None:
        self._require_strength("degrees", degrees, 180)
        self.degrees = degrees

    def matrix(self, frame: Frame, random: np.random.Generator) -> np.ndarray:
        """The product of a rotation in each plane of two axes that move."""
        found = np.eye(len(frame.size) + 1)
        for first, second in combinations(frame.moving, 2):
            angle = math.radians(random.uniform(-self.degrees, self.degrees))
            turn = np.eye(len(found))
            turn[first, first] = turn[second, second] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            found = found @ turn
        return found


class Shift(Geometric):
    """Moves the image along every axis.

    Args:
        mm: greatest way, either way; every one is as likely. Give this or `voxels`.
        voxels: the same in voxels of the image, which need not be cubes.
    """

    def __init__(self, mm: float | None = None, voxels: float | None = None) -> None:
        if (mm is None) == (voxels is None):
            self._refuse("mm and voxels", f"{mm} and {voxels}", "one of the two")
        for name, value in (("mm", mm), ("voxels", voxels)):
            self._require_strength(name, value or 0)
        self.mm, self.voxels = mm, voxels

    def check(self, frame: Frame) -> None:
        """InputError for mm where pixels have no size."""
        if self.mm is not None and not frame.is_sized:
            raise InputError(f"{KEY}: Shift: mm is {self.mm}, but pixels of these images have no size; give voxels.")

    def matrix(self, frame: Frame, random: np.random.Generator) -> np.ndarray:
        """A translation along the axes that move."""
        found = np.eye(len(frame.size) + 1)
        for axis in frame.moving:
            most = (self.mm or 0) + (self.voxels or 0) * frame.sides_mm(frame.size)[axis]
            found[axis, -1] = random.uniform(-most, most)
        return found


class Zoom(Geometric):
    """Makes what is shown larger or smaller, as much along each axis.

    Args:
        strength: greatest growth; 0.1 is 1/1.1 to 1.1 times the size, every ratio as likely.
    """

    def __init__(self, strength: float = 0.1) -> None:
        self._require_strength("strength", strength)
        self.strength = strength

    def matrix(self, frame: Frame, random: np.random.Generator) -> np.ndarray:
        """A scaling of the axes that move."""
        factor = _factor(self.strength, random)
        return np.diag([1 / factor if axis in frame.moving else 1.0 for axis in range(len(frame.size))] + [1.0])


class Gamma(Intensity):
    """Raises values, seen as [0, 1], to a power; background and the brightest stay.

    Args:
        strength: greatest change; 0.3 is powers of 1/1.3 to 1.3, every ratio as likely.
    """

    def __init__(self, strength: float = 0.3) -> None:
        self._require_strength("strength", strength)
        self.strength = strength

    def __call__(self, image: np.ndarray, random: np.random.Generator, is_stack: bool = False) -> np.ndarray:
        """The image with another contrast."""
        power = _factor(self.strength, random)
        return image if power == 1 else _from_unit(_to_unit(image) ** np.float32(power))


class BiasField(Intensity):
    """Multiplies values, seen as [0, 1], by a smooth field, as coils of MRI do.

    The field is the exponential of a polynomial of degree 3 with random coefficients; that of slices is one for all.

    Args:
        strength: greatest gain or loss; 0.3 is a field that goes at most from 1/1.3 to 1.3.
    """

    def __init__(self, strength: float = 0.3) -> None:
        self._require_strength("strength", strength)
        self.strength = strength

    def __call__(self, image: np.ndarray, random: np.random.Generator, is_stack: bool = False) -> np.ndarray:
        """The image under a random field."""
        shape = image.shape[1:] if is_stack else image.shape
        return _from_unit(_to_unit(image) * self.field(shape, random)) if self.strength else image

    def field(self, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        """The gain at each voxel, float32."""
        axes = [np.linspace(-1, 1, side, dtype=np.float32) for side in shape]
        log_gain = np.zeros(shape, dtype=np.float32)
        for powers in product(range(DEGREE + 1), repeat=len(shape)):
            if 0 < sum(powers) <= DEGREE:
                terms = np.ix_(*(axis**power for axis, power in zip(axes, powers, strict=True)))
                log_gain += np.float32(random.uniform(-1, 1)) * reduce(operator.mul, terms)
        most = float(np.abs(log_gain).max()) or 1.0
        return np.exp(log_gain * np.float32(random.uniform(0, math.log1p(self.strength)) / most))


class Noise(Intensity):
    """Adds Gaussian noise, and cuts off what leaves the range.

    Args:
        deviation: greatest standard deviation, as a share of the range; every one from 0 on is as likely.
    """

    def __init__(self, deviation: float = 0.03) -> None:
        self._require_strength("deviation", deviation)
        self.deviation = deviation

    def __call__(self, image: np.ndarray, random: np.random.Generator, is_stack: bool = False) -> np.ndarray:
        """The noisy image, in its range."""
        deviation = np.float32(2 * random.uniform(0, self.deviation))
        if deviation == 0:
            return image
        noise: np.ndarray = random.standard_normal(image.shape, dtype=np.float32)
        return (image + deviation * noise).clip(-1, 1)


def _factor(strength: float, random: np.random.Generator) -> float:
    """A ratio between 1 / (1 + strength) and 1 + strength, 1 for strength 0."""
    return math.exp(random.uniform(-math.log1p(strength), math.log1p(strength)))


def _to_unit(image: np.ndarray) -> np.ndarray:
    return (image + 1) / 2


def _from_unit(image: np.ndarray) -> np.ndarray:
    return (image * 2 - 1).clip(-1, 1)
