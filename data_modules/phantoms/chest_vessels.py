"""Tubes of a phantom chest: vessel trees that branch through the lungs, and how a slice cuts them.

All lengths in the chest's own mm (see `chests.py`): x to the patient's left, y to the back, z to the feet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MURRAY = 2.7  # branches' radii to this power add up to that of their stem
DETOUR = 0.35  # how much a tree prefers short ways from the root to short branches


@dataclass(frozen=True)
class Tubes:
    """Straight pieces with round ends."""

    start: np.ndarray  # n 3, mm
    end: np.ndarray  # n 3, mm
    radius: np.ndarray  # n, mm

    def __add__(self, other: Tubes) -> Tubes:
        return Tubes(
            np.concatenate([self.start, other.start]),
            np.concatenate([self.end, other.end]),
            np.concatenate([self.radius, other.radius]),
        )

    @classmethod
    def none(cls) -> Tubes:
        """A set without any tubes."""
        return cls(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros(0, np.float32))

    def moved(self, shift: tuple[float, float], scale: float) -> Tubes:
        """The same tubes, seen from a chest that is shifted and scaled in the image."""
        by, size = np.array([*shift, 0], dtype=np.float32), np.array([scale, scale, 1], dtype=np.float32)
        return Tubes((self.start - by) / size, (self.end - by) / size, self.radius / np.float32(scale))

    def thicker(self, mm: float) -> Tubes:
        """The same tubes, with a radius larger by `mm`."""
        return Tubes(self.start, self.end, self.radius + mm)


def polyline(points: list[tuple[float, float, float, float]]) -> Tubes:
    """Tubes through points (x, y, z, radius), the radius of each piece the mean of its ends."""
    array = np.array(points, dtype=np.float32)
    return Tubes(array[:-1, :3], array[1:, :3], (array[:-1, 3] + array[1:, 3]) / 2)


def grow(root: np.ndarray, targets: np.ndarray, leaf_mm: float) -> Tubes:
    """A tree from `root` to every target: n 3, mm; leaves have the radius `leaf_mm`.

    Targets join nearest first, each at the node that balances the new branch's length against its way from the root.
    """
    order = np.argsort(np.linalg.norm(targets - root, axis=1))
    nodes = np.concatenate([root[None], targets[order]]).astype(np.float32)
    way = np.zeros(len(nodes), dtype=np.float32)
    parent = np.zeros(len(nodes), dtype=int)
    for i in range(1, len(nodes)):
        reach = np.sqrt(((nodes[:i] - nodes[i]) ** 2).sum(axis=1))
        parent[i] = np.argmin(reach + DETOUR * way[:i])
        way[i] = way[parent[i]] + reach[parent[i]]
    leaves = np.bincount(parent[1:], minlength=len(nodes)) == 0
    flow = np.where(leaves, leaf_mm**MURRAY, 0.0)
    for i in range(len(nodes) - 1, 0, -1):  # children come after their parents
        flow[parent[i]] += flow[i]
    nodes = _straightened(nodes, parent)
    return Tubes(nodes[parent[1:]], nodes[1:], (flow[1:] ** (1 / MURRAY)).astype(np.float32))


def _straightened(nodes: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """Inner nodes moved half-way to the middle of their neighbours: vessels bend, they do not zigzag."""
    total, count = np.zeros_like(nodes), np.zeros(len(nodes), dtype=np.float32)
    np.add.at(total, parent[1:], nodes[1:])
    np.add.at(count, parent[1:], 1)
    inner = (count > 0) & (np.arange(len(nodes)) > 0)
    middle = (total[inner] / count[inner, None] + nodes[parent[inner]]) / 2
    straight = nodes.copy()
    straight[inner] = (nodes[inner] + middle) / 2
    return straight


def distance(tubes: Tubes, x: np.ndarray, y: np.ndarray, z: float, limit: float) -> np.ndarray:
    """Distance to the tubes' surfaces in the slice at z, negative inside, at most `limit`: rows columns.

    x and y are the columns' and the rows' positions, evenly spaced.
    """
    field = np.full((len(y), len(x)), limit, dtype=np.float32)
    reach = tubes.radius + limit
    low, high = np.minimum(tubes.start, tubes.end), np.maximum(tubes.start, tubes.end)
    near = np.flatnonzero((low[:, 2] - reach < z) & (high[:, 2] + reach > z))
    columns = np.searchsorted(x, np.stack([low[:, 0] - reach, high[:, 0] + reach]))
    rows = np.searchsorted(y, np.stack([low[:, 1] - reach, high[:, 1] + reach]))
    for i in near:
        patch = np.s_[rows[0, i] : rows[1, i], columns[0, i] : columns[1, i]]
        if field[patch].size:
            away = _to_segment(tubes.start[i], tubes.end[i], x[patch[1]], y[patch[0]], z) - tubes.radius[i]
            np.minimum(field[patch], away, out=field[patch])
    return field


def _to_segment(start: np.ndarray, end: np.ndarray, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    along = end - start
    dx, dy, dz = x - start[0], (y - start[1])[:, None], z - start[2]
    share = (dx * along[0] + dy * along[1] + dz * along[2]) / max(float(along @ along), 1e-6)
    share = share.clip(0, 1)
    return np.sqrt((dx - share * along[0]) ** 2 + (dy - share * along[1]) ** 2 + (dz - share * along[2]) ** 2)
