"""Phantom radiographs: X-rays through the volume of a phantom chest, with findings in it.

The chest of `chests.py` is painted once for each person, in coarse voxels. An image is made by rays from a point: every
coronal layer is magnified as its distance from the detector says, and the layers' attenuations add up (Beer-Lambert).
Vessels and round nodules are too fine for the voxels; their lengths along rays are added in the image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import ndimage

from data_modules.phantoms import chests
from data_modules.phantoms.chest_findings import Finding, Round
from data_modules.phantoms.chest_shapes import Build, Place, knots
from data_modules.phantoms.chest_vessels import Tubes, grow
from data_modules.phantoms.heads import spline

GRID = (104, 72, 160)  # voxels along z, y, x
LOW, HIGH = (-42.0, -142.0, -186.0), (322.0, 146.0, 186.0)  # corners of the volume along z, y, x, mm
LAYERS = 3  # voxels along y that are projected as one
NUM_VESSELS = {"arteries": 260, "veins": 200}  # of each lung
WATER = 0.0195  # attenuation of water, 1 / mm
BONE_HU, BONE = 140.0, 1.1  # above that a voxel holds bone, which attenuates more than its HU say by that share
VESSEL = 2 * WATER  # of blood above the lung around it, twice as a real tree has far more branches
DISTANCE_MM = {"PA": 1800.0, "AP": 1000.0}  # from the source to the detector
DETECTOR_MM = {"PA": -135.0, "AP": 140.0}  # its y: before the chest, behind it
PHOTONS = 20_000.0  # at a pixel without a body before it
CENTRE_MM = 132.0  # z of the central ray


@dataclass(frozen=True)
class Body:
    """A person's chest in voxels, z y x, and what is finer."""

    hu: np.ndarray
    lungs: np.ndarray  # depth below the lungs' surface, mm, negative inside
    cavity: np.ndarray  # the same of the chest cavity
    vessels: Tubes

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """z, y and x of the voxels, mm, shaped to broadcast."""
        z, y, x = axes()
        return z[:, None, None], y[:, None], x


@dataclass(frozen=True)
class Exposure:
    """How one image is taken."""

    view: str  # "PA" or "AP"
    side_mm: float  # of the square that the detector shows
    shift_mm: tuple[float, float]  # of its middle, x and z
    seed: int  # of the noise

    def seen(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points (n 3: x y z, mm) are seen, n 2 in shares of the image's sides, and their magnification, n."""
        m = self.magnification(points[:, 1])
        place = np.stack([points[:, 0], points[:, 2] - CENTRE_MM], 1) * m[:, None] - self.shift_mm
        return place / self.side_mm + 0.5, m

    def magnification(self, y: np.ndarray) -> np.ndarray:
        """Of what lies at that depth."""
        far = DISTANCE_MM[self.view]
        return far / (far - np.abs(y - DETECTOR_MM[self.view]))


@lru_cache
def axes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, y and x of the voxels, mm."""
    z, y, x = (
        (low + (np.arange(n) + 0.5) * (high - low) / n).astype(np.float32)
        for low, high, n in zip(LOW, HIGH, GRID, strict=True)
    )
    return z, y, x


def make_body(seed: int, heart: float = 1.0) -> Body:
    """The chest of a person; `heart` is the size of the heart, 1 for a healthy one."""
    random = np.random.default_rng(seed)
    z, y, x = axes()
    warp = np.stack([knots(len(z), 4, 6, random) for _ in range(2)]) * random.uniform(2.5, 4.5)
    texture = knots(len(z), 36, 52, random)
    scale = float(random.uniform(0.9, 1.06))
    none = Tubes.none()
    build = Build(warp.astype(np.float32), (0, 0), scale, chests.BLOOD, none)
    chest = chests.Chest(seed, build, False, texture, none, none, (), 0, 1, False)
    hu, lungs, cavity = (np.empty(GRID, np.float32) for _ in range(3))
    for i, height in enumerate(z):
        place = _place(warp[:, i], x / scale, y / scale, float(height), heart)
        shape = build.shape(place)
        chests.paint_tissues(hu[i], chest, place, shape, _spread(texture[i]))
        lungs[i], cavity[i] = shape.lungs, shape.cavity
    return Body(hu, lungs, cavity, _vessels(lungs, random))


def take(body: Body, exposure: Exposure, findings: list[Finding], size: int) -> np.ndarray:
    """The image of a body with findings in it, rows columns, size size, in [0, 1] and white where little passes."""
    hu = body.hu
    for finding in findings:
        hu = finding.fill(hu, body)
    lengths = _projected(_attenuation(hu), exposure, size)
    pixel_mm = exposure.side_mm / size
    vessels = body.vessels
    for finding in findings:
        vessels = finding.vessels(vessels)
    lengths += VESSEL * _chords(vessels, exposure, size)
    for finding in findings:
        for one in finding.rounds:
            lengths += one.density * WATER * _ball(one, exposure, size)
    return _developed(lengths, pixel_mm, exposure.seed)


def _place(warp: np.ndarray, x: np.ndarray, y: np.ndarray, z: float, heart: float) -> Place:
    shift_x, shift_y = (_spread(each) for each in warp)
    return Place(x, y, x + shift_x, y[:, None] + shift_y, z, heart)


def _spread(values: np.ndarray) -> np.ndarray:
    """Cubic spline through square knots, over y and x of the volume."""
    down, across = (spline(len(values), side).astype(np.float32) for side in GRID[1:])
    return down @ values.astype(np.float32) @ across.T


def _vessels(lungs: np.ndarray, random: np.random.Generator) -> Tubes:
    """Arteries and veins that reach all of both lungs."""
    inside = np.argwhere(lungs < -4)
    z, y, x = axes()
    points = np.stack([x[inside[:, 2]], y[inside[:, 1]], z[inside[:, 0]]], 1)
    trees = Tubes.none()
    for side, hilum in chests.HILA.items():
        lung = points[points[:, 0] * side > 0]
        for name, number in NUM_VESSELS.items():
            ends = lung[random.choice(len(lung), number)] + random.uniform(-2, 2, (number, 3))
            root = np.array(hilum) + {"arteries": (0, -4, 0), "veins": (0, -10, 14)}[name]
            trees += grow(root, ends, {"arteries": 1.05, "veins": 0.9}[name])
    return replace(trees, radius=trees.radius.clip(max=5.5))


def _attenuation(hu: np.ndarray) -> np.ndarray:
    """1 / mm, z y x, of layers of several voxels along y."""
    mu = WATER * (1 + (hu + BONE * (hu - BONE_HU).clip(0)) / 1000).clip(0)
    return mu.reshape(GRID[0], GRID[1] // LAYERS, LAYERS, GRID[2]).mean(2)


def _projected(mu: np.ndarray, exposure: Exposure, size: int) -> np.ndarray:
    """Attenuation along the ray to each pixel, rows columns; each layer of the volume is magnified and added."""
    z, y, x = axes()
    depth = y.reshape(-1, LAYERS).mean(1)
    middle = (np.arange(size) + 0.5) / size - 0.5
    lengths = np.zeros((size, size), np.float32)
    step_mm = LAYERS * float(y[1] - y[0])
    for layer, m in enumerate(exposure.magnification(depth)):
        across = _tents((middle * exposure.side_mm + exposure.shift_mm[0]) / m, x)
        down = _tents((middle * exposure.side_mm + exposure.shift_mm[1]) / m + CENTRE_MM, z)
        lengths += down @ mu[:, layer] @ across.T
    return lengths * np.float32(step_mm)


def _tents(positions: np.ndarray, knots_mm: np.ndarray) -> np.ndarray:
    """Weights of linear interpolation; beyond the outermost voxels their value goes on."""
    step = knots_mm[1] - knots_mm[0]
    inside = positions.clip(knots_mm[0], knots_mm[-1])
    return np.asarray((1 - np.abs(inside[:, None] - knots_mm) / step).clip(0).astype(np.float32))


def _chords(tubes: Tubes, exposure: Exposure, size: int) -> np.ndarray:
    """Length of the ray to each pixel inside tubes, mm, rows columns; of tubes finer than a pixel the mean over it."""
    found = np.zeros((size, size), np.float32)
    first, m = exposure.seen(tubes.start)
    last, _ = exposure.seen(tubes.end)
    first, last, scale = first * size - 0.5, last * size - 0.5, m * size / exposure.side_mm
    blurred = np.sqrt((tubes.radius * scale) ** 2 + 0.5)
    height = 2 * tubes.radius**2 * scale / blurred**2  # keeps the area across
    low = np.floor(np.minimum(first, last) - blurred[:, None]).astype(int).clip(0, size)
    high = np.ceil(np.maximum(first, last) + blurred[:, None]).astype(int).clip(-1, size - 1) + 1
    line = np.arange(size)
    for i in np.flatnonzero((low < high).all(1)):
        x, y = line[low[i, 0] : high[i, 0]], line[low[i, 1] : high[i, 1], None]
        along = last[i] - first[i]
        share = ((x - first[i, 0]) * along[0] + (y - first[i, 1]) * along[1]) / max(float(along @ along), 1e-6)
        share = share.clip(0, 1)
        away = (x - first[i, 0] - share * along[0]) ** 2 + (y - first[i, 1] - share * along[1]) ** 2
        chord = height[i] * np.sqrt((blurred[i] ** 2 - away).clip(0))
        patch = found[low[i, 1] : high[i, 1], low[i, 0] : high[i, 0]]
        np.maximum(patch, chord, out=patch)
    return found


def _ball(ball: Round, exposure: Exposure, size: int) -> np.ndarray:
    """Length of the ray to each pixel inside the lobes of a round finding, mm, rows columns."""
    found = np.zeros((size, size), np.float32)
    line = np.arange(size)
    for centre, radius in zip(ball.centres, ball.radii, strict=True):
        (place,), (m,) = exposure.seen(centre[None])
        x, y = ((line + 0.5) / size - middle for middle in place)
        away = (x**2 + y[:, None] ** 2) * (exposure.side_mm / m) ** 2
        np.maximum(found, 2 * np.sqrt((radius**2 - away).clip(0)), out=found)
    return ndimage.gaussian_filter(found, 0.8)


def _developed(lengths: np.ndarray, pixel_mm: float, seed: int) -> np.ndarray:
    """From attenuations to grey levels: scatter, noise of the photons, and the contrast that detectors are set to."""
    random = np.random.default_rng(seed)
    light = np.exp(-lengths)
    light = light + 0.25 * ndimage.gaussian_filter(light, 18 / pixel_mm)
    count = light * PHOTONS * pixel_mm**2
    light = (count + np.sqrt(count) * random.standard_normal(light.shape)).clip(1) / (PHOTONS * pixel_mm**2)
    density = -np.log(light)
    density += random.uniform(0.3, 0.7) * (density - ndimage.gaussian_filter(density, 14 / pixel_mm))
    low, high = np.percentile(density, [random.uniform(0.5, 3), random.uniform(98.8, 99.8)])
    grey = ((density - low) / (high - low)).clip(0, 1)
    return np.asarray(grey ** random.uniform(0.75, 1.05))
