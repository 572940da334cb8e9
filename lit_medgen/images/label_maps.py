"""Edits of nodules on label maps: removed, moved, grown or shrunk, drawn.

Every function returns a new map and leaves the one it is given as it is. A map holds whole numbers along x y or x y z,
as `lit_medgen.images.read_image` gives them; places and lengths are mm, counted from the centre of its first voxel.
Where a nodule is taken away, each voxel of the hole takes the class of the nearest voxel that is no nodule, or of the
nearest that is of one of the classes `within`.

An edit raises ValueError, in one line, if a nodule would leave the map or the classes `within` (the lung).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from lit_medgen.images.nifti import write_nifti
from lit_medgen.images.png import write_png

OUTSIDE = -2
"""Class of voxels beyond the edge of a map."""
WAVES = 0.5
"""Bumps of a drawn nodule are so wide, as a share of its mean radius."""


def remove(
    label_map: np.ndarray,
    classes: Collection[int],
    spacing_mm: Sequence[float],
    at_mm: Sequence[float] | None = None,
    within: Collection[int] | None = None,
) -> np.ndarray:
    """The map without its nodules, the holes filled from their surroundings.

    Args:
        label_map: classes along x y or x y z.
        classes: numbers of those that are nodules (`lit_medgen.images.nodules.nodule_classes`).
        spacing_mm: size of a voxel along each axis.
        at_mm: a place in the nodule that is meant; None: all nodules.
        within: classes that holes are filled with; None: any that is no nodule.
    """
    return _filled(label_map, _chosen(label_map, classes, spacing_mm, at_mm), classes, spacing_mm, within)


def move(
    label_map: np.ndarray,
    classes: Collection[int],
    spacing_mm: Sequence[float],
    by_mm: Sequence[float],
    at_mm: Sequence[float] | None = None,
    within: Collection[int] | None = None,
) -> np.ndarray:
    """The map with its nodules elsewhere, by a whole number of voxels: the nearest to `by_mm`.

    Moved back by as much, the map is what it was, if the nodules lay on classes `within` at both places.

    Args:
        label_map: as in `remove`.
        classes: as in `remove`.
        spacing_mm: as in `remove`.
        by_mm: how far along each axis.
        at_mm: as in `remove`.
        within: classes, such as the lung, that nodules must not leave; None: any but other nodules.
    """
    nodule = _chosen(label_map, classes, spacing_mm, at_mm)
    shift = np.rint(np.divide(by_mm, spacing_mm)).astype(int)
    rest, where = _filled(label_map, nodule, classes, spacing_mm, within), np.argwhere(nodule)
    beyond = (where + shift < 0) | (where + shift >= label_map.shape)
    if beyond.any():
        raise ValueError(f"moved by {_mm(by_mm)}, {beyond.any(1).sum()} of {len(where)} voxels of it leave the map")
    moved = np.full_like(label_map, OUTSIDE, dtype=np.int64)
    moved[tuple((where + shift).T)] = label_map[nodule]
    return _put(rest, moved, classes, within, f"moved by {_mm(by_mm)}")


def grow(
    label_map: np.ndarray,
    classes: Collection[int],
    spacing_mm: Sequence[float],
    by_mm: float = 0.0,
    factor: float = 1.0,
    at_mm: Sequence[float] | None = None,
    within: Collection[int] | None = None,
) -> np.ndarray:
    """The map with larger or smaller nodules: by a rim of so many mm, or by a factor of the diameter of each.

    A rim takes the class of the nearest voxel of the nodule. With `by_mm` 0 and `factor` 1 the map is what it was.

    Args:
        label_map: as in `remove`.
        classes: as in `remove`.
        spacing_mm: as in `remove`.
        by_mm: thickness of the rim; below 0 it is taken away.
        factor: of the diameter, about the middle of each nodule; the shape is kept.
        at_mm: as in `remove`.
        within: as in `move`.
    """
    if factor <= 0 or (by_mm and factor != 1):
        raise ValueError(f"by_mm is {by_mm:g} and factor {factor:g}; give one of them, a factor above 0")
    nodule = _chosen(label_map, classes, spacing_mm, at_mm)
    how = f"grown by {by_mm:g} mm" if by_mm else f"grown by the factor {factor:g}"
    grown = np.where(nodule, label_map.astype(np.int64), OUTSIDE)
    if by_mm:
        grown = _with_rim(grown, by_mm, spacing_mm, how)
    elif factor != 1:
        grown = _scaled(grown, factor, how)
    if not (grown != OUTSIDE).any():
        raise ValueError(f"{how}, nothing of it is left; remove it instead")
    return _put(_filled(label_map, nodule, classes, spacing_mm, within), grown, classes, within, how)


def draw(
    label_map: np.ndarray,
    classes: Collection[int],
    spacing_mm: Sequence[float],
    label: int,
    centre_mm: Sequence[float],
    radii_mm: Sequence[float],
    roughness: float = 0.0,
    seed: int = 0,
    within: Collection[int] | None = None,
) -> np.ndarray:
    """The map with one nodule more: an ellipse, or ellipsoid, along the axes, with bumps if it is rough.

    Args:
        label_map: as in `remove`.
        classes: as in `remove`.
        spacing_mm: as in `remove`.
        label: class of the nodule.
        centre_mm: its middle.
        radii_mm: half its diameter along each axis.
        roughness: standard deviation of the radius, as a share of it.
        seed: of the bumps.
        within: as in `move`.
    """
    if label not in classes or min(radii_mm) <= 0:
        raise ValueError(f"class {label}, radii {_mm(radii_mm)}; expected one of {sorted(classes)}, and more than 0 mm")
    edge = [
        int(np.ceil((1 + 4 * roughness) * radius / mm)) + 1 for radius, mm in zip(radii_mm, spacing_mm, strict=True)
    ]
    axes = [
        (np.arange(-pad, length + pad) * mm - centre) / radius
        for length, pad, mm, centre, radius in zip(label_map.shape, edge, spacing_mm, centre_mm, radii_mm, strict=True)
    ]
    squares: np.ndarray = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))  # type: ignore[assignment]
    radius = np.ones(squares.shape)
    if roughness:
        noise = np.random.default_rng(seed).standard_normal(squares.shape)
        bumps = ndimage.gaussian_filter(noise, WAVES * np.mean(radii_mm) / np.asarray(spacing_mm))
        radius += roughness * bumps / bumps.std()
    inside = (squares <= radius.clip(min=0) ** 2) & (squares <= (1 + 4 * roughness) ** 2)
    drawn = np.where(inside, label, OUTSIDE)
    how = f"drawn at {_mm(centre_mm)} with radii {_mm(radii_mm)}"
    if not inside.any():
        raise ValueError(f"{how}, it has no voxel in the map; voxels are {_mm(spacing_mm)}")
    return _put(label_map.copy(), _cut(drawn, edge, how), classes, within, how)


def write_label_map(path: Path, label_map: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """A map as a file that `sample --label_maps` reads: a PNG of 8-bit numbers of a 2D map, else NIfTI."""
    if label_map.ndim == 2:
        write_png(path, label_map / 255)
    else:
        write_nifti(path, label_map.astype(np.uint8), np.diag([*spacing_mm, 1.0]))


def _mm(lengths: Sequence[float]) -> str:
    return f"({', '.join(f'{float(length):g}' for length in lengths)}) mm"


def _chosen(
    label_map: np.ndarray, classes: Collection[int], spacing_mm: Sequence[float], at_mm: Sequence[float] | None
) -> np.ndarray:
    """The voxels of all nodules, or of the one at a place, as a mask; ValueError where there is none."""
    nodules = np.isin(label_map, list(classes))
    if not nodules.any():
        raise ValueError(f"no voxel of the classes {sorted(classes)} in this map")
    if at_mm is None:
        return nodules
    parts, _ = ndimage.label(nodules, np.ones((3,) * label_map.ndim))
    where = np.rint(np.divide(at_mm, spacing_mm)).astype(int)
    inside = bool(((where >= 0) & (where < label_map.shape)).all())
    if not inside or not parts[tuple(where)]:
        raise ValueError(f"no nodule at {_mm(at_mm)}")
    return np.asarray(parts == parts[tuple(where)])


def _filled(
    label_map: np.ndarray,
    hole: np.ndarray,
    classes: Collection[int],
    spacing_mm: Sequence[float],
    within: Collection[int] | None,
) -> np.ndarray:
    """The map with a hole filled by the nearest voxel that is no nodule, and of the classes `within` if they are given.

    ValueError where there is none.
    """
    taken = ~np.isin(label_map, list(classes)) if within is None else np.isin(label_map, list(within))
    if not taken.any():
        of = "that is no nodule" if within is None else f"of the classes {sorted(within)}"
        raise ValueError(f"no voxel {of} in this map, to fill the place of a nodule with")
    nearest = ndimage.distance_transform_edt(~taken, spacing_mm, return_distances=False, return_indices=True)
    filled = label_map.copy()
    filled[hole] = label_map[tuple(nearest[:, hole])]
    return filled


def _put(
    label_map: np.ndarray, nodule: np.ndarray, classes: Collection[int], within: Collection[int] | None, how: str
) -> np.ndarray:
    """The map with the classes of a nodule on it (`OUTSIDE` elsewhere); ValueError if it covers what it must not."""
    where = nodule != OUTSIDE
    covered = label_map[where]
    wrong = np.isin(covered, list(classes)) if within is None else ~np.isin(covered, list(within))
    if wrong.any():
        allowed = "no other nodule" if within is None else f"the classes {sorted(within)} alone"
        there = ", ".join(str(number) for number in np.unique(covered[wrong]))
        raise ValueError(f"{how}, {wrong.sum()} of {wrong.size} voxels of it cover class {there}; expected {allowed}")
    label_map[where] = nodule[where]
    return label_map


def _cut(nodule: np.ndarray, edge: Sequence[int], how: str) -> np.ndarray:
    """A padded map without its padding; ValueError if a part of the nodule lies in it."""
    inner = tuple(slice(pad, length - pad) for pad, length in zip(edge, nodule.shape, strict=True))
    num, kept = (int((part != OUTSIDE).sum()) for part in (nodule, nodule[inner]))
    if kept < num:
        raise ValueError(f"{how}, {num - kept} of {num} voxels of it leave the map")
    return nodule[inner]


def _with_rim(nodule: np.ndarray, by_mm: float, spacing_mm: Sequence[float], how: str) -> np.ndarray:
    """The nodule with a rim more, or less; voxels are in it if their centres are as near to another."""
    edge = [int(abs(by_mm) / mm) + 1 for mm in spacing_mm]
    padded = np.pad(nodule, [(pad, pad) for pad in edge], constant_values=OUTSIDE)
    inside = padded != OUTSIDE
    if by_mm < 0:
        deep = ndimage.distance_transform_edt(inside, spacing_mm) > -by_mm
        return _cut(np.where(deep, padded, OUTSIDE), edge, how)
    distance, nearest = ndimage.distance_transform_edt(~inside, spacing_mm, return_indices=True)
    return _cut(np.where(distance <= by_mm, padded[tuple(nearest)], OUTSIDE), edge, how)


def _scaled(nodule: np.ndarray, factor: float, how: str) -> np.ndarray:
    """Every connected part enlarged about its own middle, each voxel taken from the nearest one of before."""
    parts, _ = ndimage.label(nodule != OUTSIDE, np.ones((3,) * nodule.ndim))
    boxes = ndimage.find_objects(parts)
    edge = [int(np.ceil(max(factor, 1) * max(box[k].stop - box[k].start for box in boxes))) for k in range(nodule.ndim)]
    grown = np.full([length + 2 * pad for length, pad in zip(nodule.shape, edge, strict=True)], OUTSIDE)
    for part, box in enumerate(boxes, start=1):
        inside = np.where(parts[box] == part, nodule[box], OUTSIDE)
        middle = np.array(ndimage.center_of_mass(inside != OUTSIDE))
        reach = [int(np.ceil(max(factor, 1) * length)) for length in inside.shape]
        axes = [np.arange(-far, length + far) for far, length in zip(reach, inside.shape, strict=True)]
        at = [np.rint(m + (axis - m) / factor).astype(int) for axis, m in zip(axes, middle, strict=True)]
        _place(grown, axes, [b.start + pad for b, pad in zip(box, edge, strict=True)], _read(inside, at))
    return _cut(grown, edge, how)


def _read(inside: np.ndarray, at: Sequence[np.ndarray]) -> np.ndarray:
    """The voxels of a grid of indices along each axis; `OUTSIDE` where they leave the array."""
    padded = np.pad(inside, 1, constant_values=OUTSIDE)
    return padded[np.ix_(*[index.clip(-1, length) + 1 for index, length in zip(at, inside.shape, strict=True)])]


def _place(grown: np.ndarray, axes: Sequence[np.ndarray], origin: Sequence[int], values: np.ndarray) -> None:
    """Writes the nodule in `values`, whose voxel 0 of each axis is `origin`, over what is there."""
    where = np.ix_(*[axis + first for axis, first in zip(axes, origin, strict=True)])
    grown[where] = np.where(values != OUTSIDE, values, grown[where])
