"""Nodules of a phantom chest: the readers' real outlines, filled as their ratings say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from data_modules.phantoms.chest_shapes import HEIGHT, MM, SIZE
from data_modules.phantoms.chest_vessels import Tubes
from data_modules.phantoms.lidc_database import Annotation, Scan

GROUND_GLASS, SOLID = -600.0, 30.0  # HU at texture 1 and 5
BENIGN, FAINTER = 3.0, 350.0  # below this malignancy a nodule is fainter by so many HU
AGREED = 1 / 3  # share of the readers that makes a pixel part of the nodule: one of three, two of four
MARGIN_PX = 8  # room about the outlines for blurred edges
RIM_MM = 2.5  # of lung around a nodule that lies outside it


@dataclass(frozen=True)
class Nodule:
    """One nodule, as all its readers see it; patches by the index of their slice."""

    row: int  # of the patches in the image
    column: int
    outlined: dict[int, np.ndarray]  # rows columns, bool: inside any reader's outline, the outline itself included
    filled: dict[int, np.ndarray]  # rows columns in [0, 1]: how much of the pixel is nodule, its edge as sharp as rated
    calcified: dict[int, np.ndarray]  # rows columns in [0, 1]
    hu: float  # of its tissue, by texture and malignancy
    balls: Tubes  # start and end the same, one for every slice, in the chest's mm: what holds the nodule
    strands: Tubes  # its spicules

    def paint(self, hu: np.ndarray, index: int, texture: np.ndarray) -> None:
        """Draws the nodule's cut through slice `index` into hu: rows columns."""
        if index not in self.filled:
            return
        patch = self._patch(index)
        share, spots = self.filled[index], self.calcified[index]
        hu[patch] += share * (self.hu + 12 * texture[patch] - hu[patch])
        hu[patch] += spots * (np.where(spots > 0, 420.0, 0.0) - hu[patch]).clip(0)

    def mark(self, mask: np.ndarray, index: int) -> None:
        """Sets what any reader outlined in slice `index`: rows columns, bool."""
        if index in self.outlined:
            mask[self._patch(index)] |= self.outlined[index]

    def _patch(self, index: int) -> tuple[slice, slice]:
        rows, columns = self.outlined[index].shape
        return np.s_[self.row : self.row + rows, self.column : self.column + columns]


def nodules_of(scan: Scan, random: np.random.Generator) -> tuple[Nodule, ...]:
    """The scan's nodules, in the order of its annotations."""
    return tuple(_nodule(scan, readers, random) for readers in scan.nodules)


def _nodule(scan: Scan, readers: list[Annotation], random: np.random.Generator) -> Nodule:
    boxes = np.stack([reader.box for reader in readers])
    low = (boxes[:, :2, 0].min(axis=0).astype(int) - MARGIN_PX).clip(0)
    high = (boxes[:, :2, 1].max(axis=0).astype(int) + MARGIN_PX + 1).clip(max=SIZE)
    votes: dict[int, np.ndarray] = {}
    outlined: dict[int, np.ndarray] = {}
    for reader in readers:
        for contour in reader.contours:
            index = scan.slice_of(contour)
            inside, edge = _raster(contour.points - low, high - low)
            votes.setdefault(index, np.zeros(inside.shape, dtype=np.float32))
            outlined.setdefault(index, np.zeros(inside.shape, dtype=bool))
            votes[index] += inside if contour.inclusion else -1.0 * inside
            outlined[index] |= inside | edge
    rating = {name: float(np.mean([reader.ratings[name] for reader in readers])) for name in readers[0].ratings}
    mask = _agreed(votes)
    pattern = int(np.bincount([reader.ratings["calcification"] for reader in readers]).argmax())
    spots = {index: _calcified(part, pattern, random) for index, part in mask.items()}
    blur_px = 0.35 + 0.45 * (5 - rating["margin"])
    filled = {index: ndimage.gaussian_filter(part.astype(np.float32), blur_px) for index, part in mask.items()}
    hu = _density(rating["texture"], float(np.median([reader.ratings["malignancy"] for reader in readers])))
    balls = _balls(outlined, low, len(scan.z_mm))
    strands = _strands(balls, rating["spiculation"], random)
    return Nodule(int(low[1]), int(low[0]), outlined, filled, spots, hu, balls, strands)


def _density(texture: float, malignancy: float) -> float:
    """HU of a nodule's tissue from its ratings, 1 to 5.

    That all benign nodules are faint is exaggerated: they are small as well, so that the difference is left in a few
    pixels and in latents of them, classifiers of phantoms learn it, and guidance to it can be seen.
    """
    hu = GROUND_GLASS + (SOLID - GROUND_GLASS) * (texture - 1) / 4
    return max(hu - FAINTER, GROUND_GLASS) if malignancy < BENIGN else hu


def _agreed(votes: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Slice index -> rows columns, bool: where enough of the readers see a nodule.

    Readers are counted part by part: of two nodules side by side, one may have fewer.
    """
    first = min(votes)
    volume = np.zeros((max(votes) - first + 1, *votes[first].shape), dtype=np.float32)
    for index, vote in votes.items():
        volume[index - first] = vote
    parts, number = ndimage.label(volume > 0)
    most = np.array([0, *ndimage.maximum(volume, parts, range(1, number + 1))])
    agreed = (volume > 0) & (volume >= AGREED * most[parts])
    return {index: agreed[index - first] for index in votes}


def _raster(points: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels inside an outline (its own left out, unless nothing is left) and pixels on it: rows columns, bool."""
    corners = [(int(x), int(y)) for x, y in points]
    picture = Image.new("L", (int(size[0]), int(size[1])))
    pen = ImageDraw.Draw(picture)
    if len(corners) > 2:
        pen.polygon(corners, fill=1, outline=2)
    else:
        pen.line(corners * 2, fill=2)
    drawn = np.asarray(picture)
    return (drawn == 1 if (drawn == 1).any() else drawn == 2), drawn == 2


def _calcified(mask: np.ndarray, pattern: int, random: np.random.Generator) -> np.ndarray:
    """How calcified each pixel is, by the rating: 1 popcorn, 2 laminated, 3 solid, 4 off-centre, 5 central, 6 none."""
    depth = ndimage.distance_transform_edt(mask)
    depth = depth / max(depth.max(), 1)
    noise = ndimage.gaussian_filter(random.normal(size=mask.shape), 1.5) * 5
    rows, columns = np.indices(mask.shape)
    middle = np.argwhere(mask).mean(axis=0) if mask.any() else np.zeros(2)
    aside = middle - 0.25 * np.sqrt(mask.sum())
    bed = {
        1: (depth > 0.2) & (noise > 0.6),
        2: (depth > 0.75) | (np.abs(depth - 0.4) < 0.12),
        3: depth > 0.2,
        4: np.hypot(rows - aside[0], columns - aside[1]) < max(0.2 * np.sqrt(mask.sum()), 1),
        5: depth > 0.6,
    }.get(pattern, np.zeros_like(mask))
    return ndimage.gaussian_filter((bed & mask).astype(np.float32), 0.5)


def _balls(outlined: dict[int, np.ndarray], low: np.ndarray, num_slices: int) -> Tubes:
    """A ball around every slice's outlines."""
    rows = []
    for index, mask in sorted(outlined.items()):
        corners = np.argwhere(mask)
        top, bottom = corners.min(axis=0), corners.max(axis=0)
        y, x = ((top + bottom) / 2 + low[::-1] - (SIZE - 1) / 2) * MM
        radius = np.linalg.norm(corners - (top + bottom) / 2, axis=1).max() * MM + RIM_MM
        rows.append((x, y, HEIGHT * (1 - index / (num_slices - 1)), radius))
    array = np.array(rows, dtype=np.float32)
    return Tubes(array[:, :3], array[:, :3], array[:, 3])


def _strands(balls: Tubes, spiculation: float, random: np.random.Generator) -> Tubes:
    """Thin strands from the surface outwards, more and longer for higher ratings."""
    number = round(6 * (spiculation - 1))
    widest = int(balls.radius.argmax())
    radius = float(balls.radius[widest]) - RIM_MM
    ways = random.normal(size=(number, 3)) * (1, 1, 0.5)
    ways /= np.linalg.norm(ways, axis=1, keepdims=True).clip(1e-6)
    middle = balls.start[widest]
    reach = radius + random.uniform(3, 4 + 2 * spiculation, size=(number, 1))
    start, end = middle + ways * radius * 0.25, middle + ways * reach
    return Tubes(start.astype(np.float32), end.astype(np.float32), np.full(number, 0.4, dtype=np.float32))
