"""The great surfaces of a phantom chest: body, chest cavity, lungs, heart and diaphragm, slice by slice.

The chest lives in its own mm: x to the patient's left, y to the back, z from the scan's top slice to the feet, the
origin in the middle of the image. A pixel is `MM` and a scan `HEIGHT` high whatever the real spacing, so that the
drawing fills every field of view. Shapes are signed depths in mm, negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data_modules.phantoms.chest_vessels import Tubes, distance
from data_modules.phantoms.heads import spline

SIZE = 512  # rows and columns
MM = 370 / SIZE
HEIGHT = 270.0


@dataclass(frozen=True)
class Place:
    """A grid of points in one slice: where to evaluate shapes."""

    columns: np.ndarray  # their x, mm
    rows: np.ndarray  # their y, mm
    x: np.ndarray  # rows columns, after the warp, mm
    y: np.ndarray  # rows columns, after the warp, mm
    z: float  # mm below the top
    heart: float = 1.0  # size of the heart, 1 for a healthy one

    @property
    def t(self) -> float:
        """0 at the top of the scan, 1 at its bottom."""
        return self.z / HEIGHT

    @property
    def round(self) -> float:
        """Width of the dome of the chest, 0 at the tip of the lungs and 1 below."""
        return float(np.sqrt(1 - np.clip((0.40 - self.t) / 0.35, 0, 1) ** 2))


@dataclass(frozen=True)
class Shape:
    """Depths below the three great surfaces of one slice, rows columns each, mm, negative inside."""

    body: np.ndarray
    cavity: np.ndarray
    lungs: np.ndarray
    diaphragm: np.ndarray


@dataclass(frozen=True)
class Build:
    """What shapes one person's chest."""

    warp: np.ndarray  # 2 slice 9 9, knots of a smooth shift in mm: no two chests have one shape
    shift: tuple[float, float]  # of the whole chest in the image: to the left, to the back, mm
    scale: float  # of the whole chest in the image
    great: Tubes  # aorta, great veins and pulmonary arteries
    swelling: Tubes  # balls that the lungs must hold

    @property
    def num_slices(self) -> int:
        """Of the whole scan."""
        return self.warp.shape[1]

    def place(self, index: int, step: int = 1) -> Place:
        """Every `step`-th row and column of the slice."""
        line = (np.arange(0, SIZE, step) - (SIZE - 1) / 2) * MM
        columns, rows = ((line - self.shift[axis]) / self.scale for axis in range(2))
        shift_x, shift_y = (spread(self.warp[axis, index], SIZE)[::step, ::step] for axis in range(2))
        z = HEIGHT * (1 - index / (self.num_slices - 1))
        columns, rows = columns.astype(np.float32), rows.astype(np.float32)
        return Place(columns, rows, columns + shift_x, rows[:, None] + shift_y, z)

    def shape(self, place: Place) -> Shape:
        """The surfaces of body, chest cavity and lungs."""
        x, y, t, wide = place.x, place.y, place.t, place.round
        cavity = even(hull(x, y, place), place)
        middle = np.abs(x - 2) - (9 + 38 * (1 - wide) - 4 * (-y / 40 - 0.5).clip(0, 1))
        middle = union(middle, ellipse(x, y - spine(place) - 8, 23, 29), 16)
        middle = union(middle, distance(self.great, place.columns, place.rows, place.z, 25) - 1, 16)
        middle = union(middle, heart(place), 16)
        lungs = np.maximum(cavity + 2, 2.5 - middle)
        dome = diaphragm(place)
        lungs = np.maximum(lungs, dome)
        if len(self.swelling.radius):
            held = distance(self.swelling, place.columns, place.rows, place.z, 40)
            lungs, cavity = union(lungs, held, 10), union(cavity, held - 3, 24)
        shoulders = 1 / (1 + np.exp((t - 0.30) * 14))
        body = even(ellipse(x, y - 8, 154 + 26 * shoulders, 113 - 12 * shoulders * (1 - t), 2.3), place)
        return Shape(union(body, cavity - 17, 40), cavity, lungs, dome)


def hull(x: np.ndarray, y: np.ndarray, place: Place) -> np.ndarray:
    """Rough depth below the inside of the ribs."""
    size = (0.36 + 0.64 * place.round) * (1 + 0.06 * max(place.t - 0.4, 0))
    return ellipse(x, y - 2 - 10 * (1 - place.round), 121 * size, 85 * size, 2.4)


def ellipse(x: np.ndarray, y: np.ndarray, a: float, b: float, power: float = 2) -> np.ndarray:
    """Depth below a (super)ellipse about the origin; exact on its surface, roughly scaled elsewhere."""
    if power == 2:
        return (np.sqrt((x / a) ** 2 + (y / b) ** 2) - 1) * min(a, b)
    return ((np.abs(x / a) ** power + np.abs(y / b) ** power) ** (1 / power) - 1) * min(a, b)


def even(depth: np.ndarray, place: Place) -> np.ndarray:
    """A depth rescaled so that it counts mm near its surface."""
    steps = float(place.rows[1] - place.rows[0]), float(place.columns[1] - place.columns[0])
    down, across = np.gradient(depth, *steps)
    return depth / np.sqrt(down**2 + across**2).clip(0.3)


def union(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """The lesser depth, rounded where the two are within `blend` mm of each other."""
    share = (0.5 + 0.5 * (b - a) / blend).clip(0, 1)
    return b + (a - b) * share - blend * share * (1 - share)


def spine(place: Place) -> float:
    """y of the vertebral bodies' middle: the back is bent."""
    return 42 + 14 * float(np.sin(np.pi * min(place.t + 0.1, 1)))


def heart(place: Place) -> np.ndarray:
    """Rough depth below the heart's sac, an ellipsoid that points to the left and forwards."""
    dx, dy = place.x - 20, place.y + 28
    along, across = 0.84 * dx - 0.54 * dy, 0.54 * dx + 0.84 * dy
    depth = np.sqrt((along / 60) ** 2 + (across / 44) ** 2 + ((place.z - 170) / 58) ** 2)
    return (depth / place.heart - 1) * 44


def diaphragm(place: Place) -> np.ndarray:
    """Depth above the two domes: negative in the chest, positive in the abdomen."""
    right = place.x < 6
    middle, top = np.where(right, -58, 60), np.where(right, 180, 190)
    dome = top + 56 * (((place.x - middle) / 60) ** 2 + ((place.y - 2) / 74) ** 2)
    recess = 246 + 15 * place.y / 80  # the lungs' lower edge, deepest at the back
    return (place.z - np.minimum(dome, recess)) * 0.6


def knots(num_slices: int, along: int, across: int, random: np.random.Generator) -> np.ndarray:
    """Random knots, slice across across, of unit variance and smooth from slice to slice."""
    coarse = random.normal(size=(along, across, across)).astype(np.float32)
    return ndimage.zoom(coarse, (num_slices / along, 1, 1), order=3, mode="nearest", grid_mode=True)


def spread(knots: np.ndarray, size: int) -> np.ndarray:
    """Cubic spline through square knots: size size. A product of matrices, far faster than a zoom."""
    basis = spline(len(knots), size).astype(np.float32)
    return basis @ knots @ basis.T


def angle(place: Place) -> np.ndarray:
    """Angle about the chest's axis, from 0 at the spine to pi at the breastbone, alike on both sides."""
    return np.arctan2(np.abs(place.x) / 120, (place.y - 2) / 85)


def ball(place: Place, middle: tuple[float, float, float], axes: tuple[float, float, float]) -> np.ndarray:
    """Rough depth below an ellipsoid."""
    x, y = (place.x - middle[0]) / axes[0], (place.y - middle[1]) / axes[1]
    return (np.sqrt(x**2 + y**2 + ((place.z - middle[2]) / axes[2]) ** 2) - 1) * min(axes)


def paint(hu: np.ndarray, depth: np.ndarray, value: np.ndarray | float) -> None:
    """Fills where the depth is negative; a pixel that the surface crosses gets its share."""
    hu += (0.5 - depth / MM).clip(0, 1) * (value - hu)
