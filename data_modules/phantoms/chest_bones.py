"""Bones of a phantom chest: ribs, shoulder blades, collar bones, breastbone and spine."""

from __future__ import annotations

import numpy as np

from data_modules.phantoms.chest_shapes import HEIGHT, Place, Shape, angle, ellipse, paint, spine
from data_modules.phantoms.chest_vessels import distance, polyline

CORTEX = 640.0  # HU of a dense shell
CLAVICLES = polyline([(-20, -62, 20, 7), (-66, -58, 4, 6), (-130, -30, -12, 6)]) + polyline(
    [(20, -62, 20, 7), (66, -58, 4, 6), (130, -30, -12, 6)]
)


def paint_bones(hu: np.ndarray, place: Place, shape: Shape, texture: np.ndarray) -> None:
    """Ribs, shoulder blades, collar bones, breastbone and spine: dense shells around marrow."""
    marrow = 190 + 55 * texture
    ribs, cartilage = _ribs(place, shape)
    _bone(hu, cartilage, 95 + 10 * texture, 130)
    _bone(hu, ribs, marrow, CORTEX)
    _bone(hu, np.maximum(_shoulder_blades(place), shape.body + 8), marrow, 450)
    _bone(hu, distance(CLAVICLES, place.columns, place.rows, place.z, 4), marrow, CORTEX)
    front = -83 * (0.36 + 0.64 * place.round) - 5 + 10 * (1 - place.round)
    wide = 25 - 12 * min(max((place.t - 0.12) / 0.12, 0), 1)
    plate = ellipse(place.x, place.y - front, wide, 6.5, 3)
    _bone(hu, np.maximum(plate, max(0.09 - place.t, place.t - 0.66) * HEIGHT), marrow - 50, 380)
    _vertebra(hu, place, marrow)


def _bone(hu: np.ndarray, depth: np.ndarray, marrow: np.ndarray, cortex: float) -> None:
    paint(hu, depth, cortex)
    paint(hu, depth + 1.7, marrow)


def _shoulder_blades(place: Place) -> np.ndarray:
    """Depth of two slanting plates that end in the shoulders' sockets above."""
    below = min(max((place.t - 0.02) / 0.5, 0), 1)
    socket, z = (141 - 30 * below, 8 + 58 * below), place.z
    ridge = 1.5 if below < 0.3 else -9.0
    lines = [
        polyline([(95 * s, 80, z, 1.8), (112 * s, 58 + 6 * below, z, 2.2), (socket[0] * s, socket[1], z, 3.5)])
        + polyline([(118 * s, 50, z, ridge), (150 * s, 52, z, ridge + 1.5)])
        for s in (-1, 1)
    ]
    depth = distance(lines[0] + lines[1], place.columns, place.rows, z, 8)
    return depth + max(place.t - 0.5, 0) * 200


def _ribs(place: Place, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Depths of ribs and of their cartilage: all twelve are one, again every 22 mm."""
    around = angle(place)
    tilt = 48 + 36 * place.round
    bony = 2.35
    bent = np.minimum(around, bony)
    fall = tilt * (0.5 * (1 - np.cos(bent)) / 1.7 + 0.5 * bent / bony)
    fall = fall - 48 * ((around - bony) / (np.pi - bony)).clip(0) ** 1.3
    turn = (place.z - 4 - 3 * np.sign(place.x) - fall) / 22
    number = np.rint(turn)
    up = (turn - number) * 22
    depth = (np.sqrt((up / 6.8) ** 2 + ((shape.cavity - 5.0) / 3.9) ** 2) - 1) * 3.9
    depth = np.where((number < 0) | (number > 11) | (np.abs(place.x) < 15), 9.0, depth)
    over = (around - np.where(number > 7, bony - 0.25 * (number - 7), bony)) * 60
    return np.maximum(depth, over), np.maximum(np.maximum(depth, -over), (number - 7.5) * 9)


def _vertebra(hu: np.ndarray, place: Place, marrow: np.ndarray) -> None:
    """One of the column's bodies or discs, with arch and processes where they are in this slice."""
    middle, x = spine(place), place.x
    y = place.y - middle
    up = (place.z / 24) % 1 - 0.5  # from -0.5, a disc, by 0, the body's waist, to 0.5, the next disc
    size = 0.93 + 0.3 * up**2
    body = ellipse(x, y, 18 * size, 14.5 * size, 2.4)
    canal = ellipse(x, y - 21, 10.5, 9)
    arch = np.maximum(canal - 5, 3 - y * (1.0 if -0.3 < up < 0.15 else 0.25) if up < 0.3 else 22 - y)
    if abs(up) > 0.41:
        paint(hu, body, 75)
    else:
        _bone(hu, body, marrow + 260 * max(abs(up) - 0.33, 0) / 0.08, 480)
    rod = np.abs(y - 26 - 0.35 * (np.abs(x) - 12)) - 4.5 * (1 - (up / 0.3) ** 2)
    _bone(hu, np.maximum(np.maximum(rod, np.abs(x) - 36), 10 - np.abs(x)) if abs(up) < 0.3 else canal + 99, marrow, 420)
    _bone(hu, arch, marrow, CORTEX)
    reach = 50 - 34 * abs(up - 0.1)  # the spinous process points down: seen a little below its body
    _bone(hu, np.maximum(np.abs(x) - 3.2, np.maximum(28 - y, y - reach)), marrow, CORTEX)
    paint(hu, canal, 22)
