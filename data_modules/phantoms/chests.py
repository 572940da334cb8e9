"""Phantom chests: drawn anatomy in HU around the real nodule outlines of one LIDC-IDRI scan.

Every slice is painted by itself, from depths below surfaces (`chest_shapes`), tubes (`chest_vessels`) and patches
(`chest_nodules`): fat first, then what lies in it, then blur and grain as of a reconstruction. Where a nodule lies
outside the drawn lung, lung, ribs and body swell to hold it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from data_modules.phantoms import chest_vessels as vessels
from data_modules.phantoms.chest_bones import paint_bones
from data_modules.phantoms.chest_nodules import Nodule, nodules_of
from data_modules.phantoms.chest_shapes import (
    HEIGHT,
    MM,
    SIZE,
    Build,
    Place,
    Shape,
    angle,
    ball,
    ellipse,
    heart,
    hull,
    knots,
    paint,
    spine,
    spread,
)
from data_modules.phantoms.chest_vessels import Tubes, grow, polyline
from data_modules.phantoms.lidc_database import Scan
from lit_medgen.seeds import mix

INTERCEPT = -1024  # HU of a stored 0
PADDING = -2000  # what some scanners store outside their circular field of view; no HU
AIR, LUNG, FAT, SOFT, MUSCLE = -1000.0, -872.0, -105.0, 40.0, 55.0
AORTA = polyline(
    [(-2, -14, 158, 15), (-10, -22, 120, 16), (-12, -18, 86, 15), (0, 2, 76, 13.5), (14, 28, 76, 13), (23, 42, 90, 12)]
) + polyline([(23, 42, 90, 12), (27, 46, 130, 12.5), (24, 50, 190, 12), (12, 50, 260, 11), (8, 48, 300, 11)])
PULMONARY = polyline([(10, -36, 142, 14), (14, -22, 115, 14), (24, -2, 108, 12), (40, 8, 113, 8)]) + polyline(
    [(14, -20, 113, 12), (-10, -2, 116, 11), (-40, 2, 120, 7.5)]
)
VEINS = (
    polyline([(-30, -18, 48, 8), (-32, -16, 90, 9), (-30, -10, 140, 10)])
    + polyline([(-24, 12, 185, 12), (-24, 20, 300, 12)])
    + polyline([(-30, -20, 50, 7), (8, -34, 42, 6.5), (42, -16, 5, 6), (60, -10, -20, 6)])
    + polyline([(-30, -20, 50, 7), (-44, -10, 10, 6.5), (-60, -8, -20, 6)])
)
ARTERIES = (
    polyline([(-10, -8, 74, 6), (-22, -4, 40, 5.5), (-38, 4, -20, 5)])
    + polyline([(4, 6, 72, 4.5), (14, 0, -20, 4)])
    + polyline([(14, 22, 72, 5), (32, 18, 20, 5), (60, 4, -20, 5)])
)
BLOOD = AORTA + PULMONARY + VEINS + ARTERIES
AIRWAYS = (
    polyline([(0, 10, -20, 8.5), (-1, 14, 60, 8.5), (0, 16, 97, 9)])
    + polyline([(0, 16, 97, 8), (-22, 14, 113, 7), (-42, 12, 124, 5)])
    + polyline([(0, 16, 97, 8), (24, 18, 118, 6), (44, 14, 129, 4.5)])
)
OESOPHAGUS = polyline([(3, 32, -20, 6.5), (7, 36, 110, 6.5), (10, 34, 200, 7.5), (14, 30, 235, 8)])
LINE = np.arange(SIZE) - (SIZE - 1) / 2
OUTSIDE = np.hypot(LINE, LINE[:, None]) > SIZE / 2  # of the circle that a scanner sees
HILA = {-1: (-40.0, 6.0, 121.0), 1: (41.0, 10.0, 117.0)}
NUM_ENDS = {"arteries": 1500, "veins": 1200, "bronchi": 40}  # of each lung


@dataclass(frozen=True)
class Chest:
    """Everything about one phantom but its slices."""

    seed: int  # of all that is random
    build: Build
    contrast: bool  # whether blood is bright
    texture: np.ndarray  # slice 52 52, knots of a rough field of unit variance
    trees: Tubes  # the lungs' vessels and the nodules' strands
    bronchi: Tubes
    nodules: tuple[Nodule, ...]  # what the readers outlined
    grain: float  # SD of the noise in soft tissue, HU
    grain_px: float  # width of the noise's grain, pixels
    padded: bool  # whether the image is `PADDING` outside the scanner's circle


def make(scan: Scan, seed: int) -> Chest:
    """The chest drawn around a scan's nodules."""
    seed = mix("chest", seed, scan.patient)
    random = np.random.default_rng(seed)
    num_slices = len(scan.z_mm)
    nodules = nodules_of(scan, random)
    warp = np.stack([knots(num_slices, 4, 6, random) for _ in range(2)]) * random.uniform(2.5, 4.5)
    shift, scale = _fitted(nodules)
    build = Build(warp.astype(np.float32), shift, scale, BLOOD, Tubes.none())
    build = _swollen(build, nodules)
    trees, bronchi = _trees(build, random)
    return Chest(
        seed=seed,
        build=build,
        contrast=scan.contrast,
        texture=knots(num_slices, 36, 52, random),
        trees=sum((nodule.strands.moved(shift, scale) for nodule in nodules), start=trees),
        bronchi=bronchi,
        nodules=nodules,
        grain=float(random.uniform(14, 25)),
        grain_px=float(random.uniform(0.55, 0.85)),
        padded=bool(random.random() < 0.5),
    )


def draw(chest: Chest, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One slice; slices count from the feet up.

    Returns:
        HU as int16 and the lungs (with their vessels and nodules) as bool, both rows columns.
    """
    place = chest.build.place(index)
    shape = chest.build.shape(place)
    texture = spread(chest.texture[index], SIZE)
    hu = _table(place)
    _paint(hu, chest, place, shape, texture)
    for nodule in chest.nodules:
        nodule.paint(hu, index, texture)
    hu = ndimage.gaussian_filter(hu, 0.6) + _grain(chest, place, shape, index)
    hu = hu.clip(INTERCEPT, 3071)
    lungs = shape.lungs < 0
    for nodule in chest.nodules:
        nodule.mark(lungs, index)
    if chest.padded:
        hu[OUTSIDE] = PADDING + INTERCEPT
    return np.rint(hu).astype(np.int16), lungs


def paint_tissues(hu: np.ndarray, chest: Chest, place: Place, shape: Shape, texture: np.ndarray) -> None:
    """Fills a slice, rows columns at any spacing, with air and a chest without nodules, table or noise."""
    hu[:] = AIR
    _paint(hu, chest, place, shape, texture)


def _paint(hu: np.ndarray, chest: Chest, place: Place, shape: Shape, texture: np.ndarray) -> None:
    _wall(hu, place, shape, texture)
    _mediastinum(hu, chest, place, shape, texture)
    _abdomen(hu, chest, place, shape, texture)
    paint_bones(hu, place, shape, texture)
    _lungs(hu, chest, place, shape, texture)


def _fitted(nodules: tuple[Nodule, ...]) -> tuple[tuple[float, float], float]:
    """Shift (mm) and scale of the chest that leave as little as possible of the nodules outside the ribs."""
    balls = sum((nodule.balls for nodule in nodules), start=Tubes.none())
    best, least = ((0.0, 0.0), 1.0), np.inf
    for scale in (0.86, 0.93, 1.0, 1.07, 1.14):
        for shift in ((x, y) for x in range(-24, 25, 8) for y in range(-24, 25, 8)):
            moved = balls.moved(shift, scale)
            out = 0.0
            for (x, y, z), radius in zip(moved.start, moved.radius, strict=True):
                nowhere = np.zeros(0)
                depth = hull(np.array(x), np.array(y), Place(nowhere, nowhere, nowhere, nowhere, float(z)))
                out += max(float(depth) + float(radius) + 1, 0) ** 2
            cost = out + 0.02 * (shift[0] ** 2 + shift[1] ** 2) + 900 * (scale - 1) ** 2
            if cost < least:
                best, least = ((float(shift[0]), float(shift[1])), scale), cost
    return best


def _swollen(build: Build, nodules: tuple[Nodule, ...]) -> Build:
    """The build with room for every nodule, and a way into the lung for those whose middle lies outside it."""
    swelling = Tubes.none()
    for nodule in nodules:
        balls = nodule.balls.moved(build.shift, build.scale)
        swelling += balls
        middle = len(balls.radius) // 2
        x, y, z = (float(value) for value in balls.start[middle])
        place = build.place(round((1 - z / HEIGHT) * (build.num_slices - 1)))
        row, column = np.abs(place.rows - y).argmin(), np.abs(place.columns - x).argmin()
        if build.shape(place).lungs[row, column] > 0:
            core = (66 * (1 if x > 0 else -1), 10, min(max(z, 0.28 * HEIGHT), 0.6 * HEIGHT))
            radius = float(balls.radius[middle])
            swelling += polyline([(x, y, z, radius), (*core, radius)])
    return replace(build, swelling=swelling)


def _trees(build: Build, random: np.random.Generator) -> tuple[Tubes, Tubes]:
    """Vessels and bronchi that reach all of both lungs."""
    inside = []
    for index in np.unique(np.linspace(0, build.num_slices - 1, 56).astype(int)):
        place = build.place(index, step=6)
        rows, columns = np.nonzero(build.shape(place).lungs < -3)
        inside.append(np.stack([place.columns[columns], place.rows[rows], np.full(len(rows), place.z)], axis=1))
    points = np.concatenate(inside)
    points = points + random.uniform(-2.5, 2.5, points.shape)
    trees, bronchi = Tubes.none(), Tubes.none()
    for side, hilum in HILA.items():
        lung = points[points[:, 0] * side > 0]
        root = np.array(hilum)
        for name, number in NUM_ENDS.items():
            near = lung[np.linalg.norm(lung - root, axis=1) < (52 if name == "bronchi" else np.inf)]
            ends = random.permutation(near)[:number]
            offset = {"arteries": (0, -4, 0), "veins": (0, -10, 14), "bronchi": (0, 5, 4)}[name]
            tree = grow(root + offset, ends, {"arteries": 0.5, "veins": 0.45, "bronchi": 0.65}[name])
            trees, bronchi = (trees, bronchi + tree) if name == "bronchi" else (trees + tree, bronchi)
    return trees, bronchi


def _table(place: Place) -> np.ndarray:
    """Air with a mattress on a curved table in it: rows columns, HU."""
    hu = np.full((SIZE, SIZE), AIR, dtype=np.float32)
    bend = place.rows[:, None] + (place.columns / 42) ** 2
    wide = np.abs(place.columns) - 178
    paint(hu, np.maximum(np.abs(bend - 139) - 7, wide), -955)
    paint(hu, np.maximum(np.abs(bend - 147) - 0.9, wide), -180)
    paint(hu, np.maximum(np.abs(bend - 158) - 10, wide), -935)
    paint(hu, np.maximum(np.abs(bend - 168) - 1.1, wide), -80)
    return hu


def _wall(hu: np.ndarray, place: Place, shape: Shape, texture: np.ndarray) -> None:
    """Skin, fat, and the muscles that lie on the ribs."""
    paint(hu, shape.body, -5)
    paint(hu, shape.body + 2.0, FAT + 9 * texture)
    around, t = angle(place), place.t
    fade = 1 / (1 + np.exp((t - 0.5) * 16))
    front = 17 * fade * np.exp(-(((around - 2.45) / 0.38) ** 2))
    side = (10 + 16 * fade) * np.exp(-(((around - 1.25) / 0.55) ** 2))
    thick = 12 + front + side + texture
    inner = np.maximum(shape.cavity - thick, shape.body + 7 + texture)
    strands = (FAT - MUSCLE) * (texture - 1.3).clip(0, 0.7)
    muscle = MUSCLE + 5 * texture + strands
    paint(hu, inner, muscle)
    paint(hu, np.maximum(np.abs(shape.cavity - 13 - texture) - 0.8, shape.body + 8), FAT + 40)
    paint(hu, np.maximum(np.abs(shape.cavity - 24 - 2 * texture) - 0.9, shape.body + 8), FAT + 30)
    back = spine(place) + 41
    for side_of in (-1, 1):
        erector = ellipse(place.x - 27 * side_of, place.y - back, 25, 17)
        paint(hu, np.maximum(erector, shape.body + 7), muscle)


def _mediastinum(hu: np.ndarray, chest: Chest, place: Place, shape: Shape, texture: np.ndarray) -> None:
    """Fat between the lungs, in it the heart, the great vessels, the windpipe and the gullet."""
    blood, wall = (165.0, 95.0) if chest.contrast else (44.0, 46.0)
    loose = FAT + 12 + 10 * texture + 130 * (texture - 0.9).clip(0, 0.9)
    paint(hu, shape.cavity + 1, loose)
    outer = heart(place)
    paint(hu, np.abs(outer - 1.0) - 0.8, 20)
    paint(hu, outer + 4 + 0.7 * texture, wall + 3 * texture)
    for middle, axes in (((34, -36, 176), (36, 22, 36)), ((-14, -34, 164), (24, 22, 36)), ((4, 2, 142), (32, 16, 20))):
        paint(hu, np.maximum(ball(place, middle, axes), outer + 7), blood)
    for tubes, value in ((chest.build.great, blood), (OESOPHAGUS, 38.0)):
        paint(hu, vessels.distance(tubes, place.columns, place.rows, place.z, 2), value + 3 * texture)
    paint(hu, vessels.distance(OESOPHAGUS.thicker(-5.5), place.columns, place.rows, place.z, 2), -500)
    airway = vessels.distance(AIRWAYS, place.columns, place.rows, place.z, 4)
    paint(hu, airway - 1.6, 30)
    paint(hu, airway, AIR + 10)


def _abdomen(hu: np.ndarray, chest: Chest, place: Place, shape: Shape, texture: np.ndarray) -> None:
    """Under the diaphragm: liver on the right; spleen and stomach, in fat, on the left."""
    if place.z < 0.6 * HEIGHT:
        return
    under = np.maximum(shape.cavity + 1, 0.3 - shape.diaphragm)
    under = np.maximum(under, -np.minimum(heart(place), ellipse(place.x, place.y - spine(place), 24, 24)))
    more = 50.0 if chest.contrast else 0.0
    paint(hu, under, 56 + more + 4 * texture)  # the liver, to begin with
    left = np.maximum(under + 2.5, 22 - 0.4 * (place.y + 20) - place.x)
    paint(hu, left, FAT + 8 * texture)
    paint(hu, np.maximum(left, ball(place, (86, 44, 236), (34, 38, 50))), 48 + more + 3 * texture)
    stomach = np.maximum(left, ball(place, (56, -12, 238), (42, 44, 46)))
    paint(hu, stomach, 45)
    paint(hu, stomach + 4, np.where(place.y < -30, AIR + 30, 18.0))
    for line in (AORTA, VEINS):
        paint(hu, vessels.distance(line, place.columns, place.rows, place.z, 2), 44 + 2 * more)


def _lungs(hu: np.ndarray, chest: Chest, place: Place, shape: Shape, texture: np.ndarray) -> None:
    """Parenchyma, heavier towards the back, with fissures, vessels and bronchi."""
    seeping = 14 * texture + 0.22 * place.y + 60 * (shape.lungs + 6).clip(0, 6) / 6
    paint(hu, shape.lungs, LUNG + seeping)
    inside = (0.5 - shape.lungs / MM).clip(0, 1)
    slant = (place.y - 52 + (place.z - 62) * 0.62) * 0.85 + 0.12 * np.abs(place.x) + 1.5 * texture
    level = (place.z - 128) * 0.75 + 0.1 * place.y + 3 * texture
    seam = np.where((place.x < 0) & (slant < 0), np.minimum(np.abs(slant), np.abs(level)), np.abs(slant))
    hu += inside * 95 * np.exp(-((seam / 0.9) ** 2))
    blood = (150.0 if chest.contrast else 40.0) + 2 * texture
    tree = vessels.distance(chest.trees, place.columns, place.rows, place.z, 1)
    hu += inside * (0.5 - tree / MM).clip(0, 1) * (blood - hu)
    bronchi = vessels.distance(chest.bronchi, place.columns, place.rows, place.z, 2.5)
    hu += inside * (0.5 - (bronchi - 0.7) / MM).clip(0, 1) * (-300 - hu)
    paint(hu, bronchi, AIR + 20)


def _grain(chest: Chest, place: Place, shape: Shape, index: int) -> np.ndarray:
    """Noise as a reconstruction leaves it: grainy, shared in part by neighbouring slices, streaky at the shoulders."""
    here, above = (np.random.default_rng([chest.seed, i]) for i in (index, index + 1))
    white = [random.standard_normal((SIZE, SIZE), dtype=np.float32) for random in (here, above)]
    both = 0.84 * white[0] + 0.54 * white[1]
    fine = ndimage.gaussian_filter(both, chest.grain_px)
    coarse = ndimage.zoom(here.standard_normal((SIZE // 4, SIZE // 4), dtype=np.float32), 4, order=1)
    streaks = ndimage.gaussian_filter1d(both, 9, axis=1)
    shoulders = 0.7 / (1 + np.exp((place.t - 0.12) * 30))
    body = (0.5 - shape.body / 4).clip(0, 1)
    level = 0.42 + body * (0.5 + 0.25 * np.exp(-((np.hypot(place.columns, place.rows[:, None]) / 110) ** 2)))
    noise = fine / fine.std() + 0.3 * coarse + shoulders * body * streaks / streaks.std()
    return (chest.grain * level * noise).astype(np.float32)
