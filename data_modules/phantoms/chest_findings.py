"""Findings of phantom radiographs: what each does to the voxels and vessels of a chest, and the box around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from data_modules.phantoms.chest_vessels import Tubes

if TYPE_CHECKING:
    from data_modules.phantoms.radiographs import Body

FLUID, TISSUE, AIR = 15.0, 30.0, -1000.0  # HU
HEART = np.array([20.0, -28.0, 170.0]), np.array([56.0, 52.0, 58.0])  # middle and half sides of a healthy one, x y z


@dataclass(frozen=True)
class Round:
    """Balls of tissue in a lung, which overlap."""

    centres: np.ndarray  # n 3, x y z, mm
    radii: np.ndarray  # n, mm
    density: float  # share of water's attenuation above the lung


@dataclass(frozen=True)
class Finding:
    """A finding in one image.

    Attributes:
        label: as the tables of ChestX-ray14 spell it.
        weight: how much of each voxel is changed, z y x in [0, 1], and to which HU; None if no voxel is.
        hu: what these become.
        rounds: balls that are added in the image.
        corners: points around it, n 3, x y z, mm.
    """

    label: str
    corners: np.ndarray
    weight: np.ndarray | None = None
    hu: float = TISSUE
    rounds: tuple[Round, ...] = ()
    emptied: Callable[[np.ndarray], np.ndarray] | None = field(default=None)
    """Of points, n 3: whether no vessel is left there."""

    def fill(self, hu: np.ndarray, body: Body) -> np.ndarray:
        """The voxels with the finding in them."""
        return hu if self.weight is None else hu + self.weight * (self.hu - hu)

    def vessels(self, tubes: Tubes) -> Tubes:
        """Those that are left."""
        if self.emptied is None:
            return tubes
        left = ~self.emptied((tubes.start + tubes.end) / 2)
        return replace(tubes, start=tubes.start[left], end=tubes.end[left], radius=tubes.radius[left])


def cardiomegaly(size: float) -> Finding:
    """A large heart, which the body has already."""
    middle, half = HEART
    return Finding("Cardiomegaly", np.stack([middle - half * size, middle + half * size]))


def nodule(body: Body, random: np.random.Generator) -> Finding:
    """A ball of 8 to 26 mm."""
    radius = float(random.uniform(4, 13))
    centre = _inside(body, random, radius + 3)
    return Finding("Nodule", _around(centre, radius), rounds=(Round(centre[None], np.array([radius]), 0.9),))


def mass(body: Body, random: np.random.Generator) -> Finding:
    """A lump of more than 30 mm, with lobes."""
    radius = float(random.uniform(16, 27))
    centre = _inside(body, random, 0.6 * radius)
    lobes = random.normal(size=(4, 3))
    lobes = centre + lobes / np.linalg.norm(lobes, axis=1, keepdims=True) * radius * 0.45
    radii = radius * random.uniform(0.5, 0.75, 4)
    low, high = (lobes - radii[:, None]).min(0), (lobes + radii[:, None]).max(0)
    return Finding("Mass", np.stack([low, high]), rounds=(Round(lobes, radii, 0.95),))


def effusion(body: Body, random: np.random.Generator) -> Finding:
    """Fluid that fills a lung's base and rises at the side of the chest."""
    side, level = random.choice([-1.0, 1.0]), random.uniform(178, 212)
    z, _, x = body.axes
    surface = level - 32 * ((np.abs(x) - 45).clip(0) / 65) ** 2
    weight = _smooth((z - surface) / 2) * _smooth(-body.lungs / 2) * (x * side > 0)
    return Finding("Effusion", _corners(body, weight > 0.5), weight, FLUID)


def pneumothorax(body: Body, random: np.random.Generator) -> Finding:
    """Air between a lung and the side of the chest, widest at the top; no vessels, and the lung's edge as a line."""
    side, widest = random.choice([-1.0, 1.0]), random.uniform(16, 34)
    z, _, x = body.axes
    depth = -body.cavity - widest * (1.15 - z / 210).clip(0.1)
    in_lung = _smooth(-body.lungs / 1.5) * (x * side > 0)
    air = _smooth(-depth / 1.5) * in_lung
    line = np.exp(-((depth / 2.0) ** 2)) * in_lung
    weight = np.maximum(air, 0.75 * line)
    value = np.where(air > 0.75 * line, AIR, -200.0).astype(np.float32)
    corners = _corners(body, (air > 0.5) & (np.abs(x) > 30))
    return Finding("Pneumothorax", corners, weight, value, emptied=_reader(body, air))  # type: ignore[arg-type]


def consolidation(body: Body, random: np.random.Generator) -> Finding:
    """A lobe's part filled, with an edge that is not sharp."""
    weight = _patch(body, random, random.uniform(24, 40), 0.75)
    return Finding("Consolidation", _corners(body, weight > 0.3), weight)


def infiltration(body: Body, random: np.random.Generator) -> Finding:
    """Faint, patchy shadows in one lung."""
    weight = _patch(body, random, random.uniform(34, 52), 0.32)
    return Finding("Infiltration", _corners(body, weight > 0.12), weight)


def atelectasis(body: Body, random: np.random.Generator) -> Finding:
    """A plate of collapsed lung above the diaphragm."""
    side, level = random.choice([-1.0, 1.0]), random.uniform(140, 172)
    z, y, x = body.axes
    middle, slope = side * random.uniform(62, 84), random.uniform(-0.25, 0.25)
    away = np.abs(z - level - slope * (x - middle)) / random.uniform(2.2, 3.6)
    across = (np.abs(x - middle) / random.uniform(20, 32)) ** 4 + (np.abs(y - 5) / 55) ** 4
    weight = np.exp(-(away**2)) * np.exp(-across) * _smooth(-body.lungs / 2)
    return Finding("Atelectasis", _corners(body, weight > 0.3), weight)


ACUTE: dict[str, Callable[[Body, np.random.Generator], Finding]] = {
    "Atelectasis": atelectasis,
    "Consolidation": consolidation,
    "Effusion": effusion,
    "Infiltration": infiltration,
    "Mass": mass,
    "Nodule": nodule,
    "Pneumothorax": pneumothorax,
}


def _smooth(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-values.clip(-12, 12))))


def _patch(body: Body, random: np.random.Generator, radius: float, strength: float) -> np.ndarray:
    """How much of each voxel a patch of shadow fills, z y x."""
    centre = _inside(body, random, 10)
    z, y, x = body.axes
    away = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + ((z - centre[2]) / 1.2) ** 2) / radius
    waves = np.zeros_like(away)
    for _ in range(5):
        way = random.normal(size=3) / random.uniform(6, 14)
        waves += np.sin(way[0] * x + way[1] * y + way[2] * z + random.uniform(0, 6)) / 5
    return np.asarray(strength * _smooth(6 * (1 - away) + 5 * waves) * _smooth(-body.lungs / 2)).astype(np.float32)


def _inside(body: Body, random: np.random.Generator, depth_mm: float) -> np.ndarray:
    """A point of the lungs so deep below their surface, x y z, mm; the deepest if there is none, beside the heart."""
    z, y, x = (axis.ravel() for axis in body.axes)
    seen = (z[:, None, None] < 185) & (np.abs(x) > 48)
    deep = np.argwhere((body.lungs < -depth_mm) & seen)
    k = random.choice(deep) if len(deep) else np.unravel_index(np.where(seen, body.lungs, 0).argmin(), body.lungs.shape)
    return np.array([x[k[2]], y[k[1]], z[k[0]]])


def _corners(body: Body, mask: np.ndarray) -> np.ndarray:
    """Points of a mask that its outline in an image cannot pass, n 3, x y z, mm."""
    z, y, x = (axis.ravel() for axis in body.axes)
    found = np.argwhere(mask)
    return np.stack([x[found[:, 2]], y[found[:, 1]], z[found[:, 0]]], 1)


def _around(centre: np.ndarray, radius: float) -> np.ndarray:
    flat = np.array([radius, 0.0, radius])
    return np.stack([centre - flat, centre + flat])


def _reader(body: Body, mask: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Whether points (n 3) lie in a mask of voxels."""
    z, y, x = (axis.ravel() for axis in body.axes)

    def read(points: np.ndarray) -> np.ndarray:
        at = [
            np.rint((values - axis[0]) / (axis[1] - axis[0])).astype(int).clip(0, len(axis) - 1)
            for values, axis in zip(points.T[::-1], (z, y, x), strict=True)
        ]
        return np.asarray(mask[tuple(at)] > 0.5)

    return read
