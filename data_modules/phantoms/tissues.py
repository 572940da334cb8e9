"""What a phantom head of UK Biobank consists of, and how T1 and FLAIR show it.

The grey values of the template are those of three tissues and of their mixtures, so a voxel's value says its shares of
cerebrospinal fluid (CSF), grey and white matter. Two heads differ by their form (`heads.deformation`), by the width of
their ventricles, by atrophy, which widens the sulci, and by hyperintensities of the white matter. All four can be seen
in the image, and the volumes in the table are sums of the shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from data_modules.phantoms.heads import SPACING_MM, deformation, template

CSF, GREY, WHITE = 0.30, 0.66, 0.86
"""Values of the pure tissues in the template, and so in T1."""
FLAIR = ((0.0, 0.05, CSF, 0.5, GREY, WHITE, 1.0), (0.0, 0.04, 0.10, 0.35, 0.75, 0.56, 0.53))
"""T1 value -> FLAIR value: fluid is dark, grey matter brighter than white."""
HYPERINTENSE = 1.0
"""FLAIR value of a hyperintensity; T1 shows it a little darker than the white matter around it."""
MNI_ORIGIN, MNI_SIZE = (-90, -126, -72), (91, 109, 91)
"""Of the MNI152 grid of 2 mm: world coordinates of its first voxel (mm, the smallest of each axis), and its voxels."""
OUTSIDE = -9.0
"""Index of no voxel of the template."""
NATIVE_SIZE = (88, 104, 88)
NATIVE_CENTRE_MM = (0, -16, 6)
"""Where in the scanner the middle of the native grid lies."""


@dataclass(frozen=True)
class Build:
    """What makes one head another than everybody else's.

    Attributes:
        seed: of the deformation.
        form: 3, stretch along x, y, z relative to the template; seen in MNI space too.
        size: length of the head in the scanner relative to MNI space; what a registration takes out.
        growth_mm: how far the walls of the ventricles have moved outwards.
        atrophy: by how much the grey values of the cortex have sunk towards those of CSF.
        lesions: n 4, centre in MNI space and radius of each hyperintensity, mm.
    """

    seed: int
    form: np.ndarray
    size: float
    growth_mm: float
    atrophy: float
    lesions: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """A head on a grid of 2 mm: what its voxels consist of, x y z in RAS order.

    Attributes:
        affine: 4 4, voxel to world, mm.
        values: grey values that say the tissues, on the scale of the template.
        ventricles: share of CSF that lies in the lateral ventricles.
        lesions: share of hyperintense white matter.
    """

    affine: np.ndarray
    values: np.ndarray
    ventricles: np.ndarray
    lesions: np.ndarray

    @property
    def grey(self) -> np.ndarray:
        """Share of grey matter."""
        return np.interp(self.values, (CSF, GREY, WHITE), (0, 1, 0))

    @property
    def white(self) -> np.ndarray:
        """Share of white matter, hyperintense or not."""
        return np.interp(self.values, (GREY, WHITE), (0, 1))

    def volumes_mm3(self) -> dict[str, float]:
        """Volume of each tissue: the sum of its shares."""
        shares = {"grey": self.grey, "white": self.white, "ventricles": self.ventricles, "lesions": self.lesions}
        return {name: float(share.sum(dtype=np.float64)) * SPACING_MM**3 for name, share in shares.items()}

    def t1(self) -> np.ndarray:
        """T1 without noise and bias, x y z in [0, 1]."""
        return self.values - 0.15 * self.lesions

    def flair(self) -> np.ndarray:
        """FLAIR without noise and bias, x y z in [0, 1]."""
        values = np.interp(self.values, *FLAIR)
        return values + self.lesions * (HYPERINTENSE - values)


@lru_cache(maxsize=1)
def _regions() -> tuple[np.ndarray, np.ndarray]:
    """Where in the template ventricular CSF can be (x y z, 1 or 0), and hyperintensities (n 3, mm)."""
    brain = template()
    # One voxel further than the ventricles: those on the wall hold some CSF too.
    ventricles = ndimage.binary_dilation(brain.ventricles > 0).astype(np.float32)
    deep = (brain.voxels > 0.84) & (brain.distance_mm > 3) & (brain.distance_mm < 25)
    places = np.argwhere(deep) @ brain.affine[:3, :3].T + brain.affine[:3, 3]
    return ventricles, places[places[:, 2] > 0]


def lesions(num: int, random: np.random.Generator) -> np.ndarray:
    """Centres in the deep white matter of MNI space and radii, mm: num 4. More begin with the same ones."""
    _, places = _regions()
    drawn = [(*places[random.integers(len(places))], random.uniform(2, 4.5)) for _ in range(num)]
    return np.array(drawn).reshape(-1, 4)


def anatomies(build: Build) -> tuple[Anatomy, Anatomy]:
    """The head in the scanner, and the same registered to MNI space (as by a scaling: form and folds are kept)."""
    brain, source = template(), _source(build)
    origin = np.array(NATIVE_CENTRE_MM) - SPACING_MM * (np.array(NATIVE_SIZE) - 1) / 2
    # A voxel at p mm of the scanner is one at p / size mm of MNI space.
    offset = (origin / build.size - brain.affine[:3, 3]) / SPACING_MM
    scaled = [
        ndimage.affine_transform(each, [1 / build.size] * 3, offset, NATIVE_SIZE, order=1, cval=OUTSIDE)
        for each in source
    ]
    return _anatomy(np.stack(scaled), _affine(origin), build.size, build), _registered(source, build)


def registered(build: Build) -> Anatomy:
    """The head in MNI space alone, the second of `anatomies`."""
    return _registered(_source(build), build)


def _source(build: Build) -> np.ndarray:
    """Where in the template each voxel of a head is looked up, 3 x y z."""
    return deformation(build.growth_mm, build.form, np.random.default_rng(build.seed)).astype(np.float32)


def _registered(source: np.ndarray, build: Build) -> Anatomy:
    first = np.round((np.array(MNI_ORIGIN) - template().affine[:3, 3]) / SPACING_MM).astype(int)
    inside = tuple(slice(start, start + size) for start, size in zip(first, MNI_SIZE, strict=True))
    return _anatomy(source[:, *inside], _affine(np.array(MNI_ORIGIN)), 1.0, build)


def _affine(origin: np.ndarray) -> np.ndarray:
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = origin
    return affine


def _anatomy(source: np.ndarray, affine: np.ndarray, size: float, build: Build) -> Anatomy:
    """The template looked up at `source` (3 x y z), with atrophy and hyperintensities."""
    brain, (ventricles, _) = template(), _regions()
    values = ndimage.map_coordinates(brain.voxels, source, order=1)
    # The template is an average, so its values fall slowly from the cortex to the sulci: where they sink, sulci widen.
    values = np.interp(values, (0, CSF, 0.55, 0.78, 1), (0, CSF, 0.55 - build.atrophy, 0.78, 1)).astype(np.float32)
    there = ndimage.map_coordinates(ventricles, source, order=1)
    fluid = np.interp(values, (CSF, GREY), (1, 0)) * (values > 0.02)
    white = np.interp(values, (GREY, WHITE), (0, 1))
    spots = _spots(build.lesions * size, values.shape, affine[:3, 3])
    return Anatomy(affine, values, there * fluid, spots * white)


def _spots(balls: np.ndarray, shape: tuple[int, ...], origin: np.ndarray) -> np.ndarray:
    """Soft balls (centre and radius, mm), x y z in [0, 1]."""
    drawn = np.zeros(shape, dtype=np.float32)
    for *centre, radius in balls:
        middle, reach = (np.array(centre) - origin) / SPACING_MM, 3 * radius / SPACING_MM
        low = np.maximum(np.ceil(middle - reach), 0).astype(int)
        high = np.minimum(np.floor(middle + reach) + 1, shape).astype(int)
        axes = [np.arange(*ends) - place for *ends, place in zip(low, high, middle, strict=True)]
        near = tuple(slice(*ends) for ends in zip(low, high, strict=True))
        square = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True))
        drawn[near] += np.exp(-square / (2 * (radius / SPACING_MM) ** 2))
    return drawn.clip(0, 1)
