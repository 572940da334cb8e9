"""LIDC-IDRI's XML: what each reader drew, whose drawings are of one nodule, and what they agree on.

Up to four readers outlined every nodule of 3 mm or more and rated it; nobody numbered nodules across readers. As pylidc
does (Hancock, Magnan, 2016), drawings whose outlines come near each other are taken for one nodule, and a voxel
belongs to it if at least half of those who drew it have it inside their outline. An outline lies just outside the
nodule, so its own pixels do not count.

Points are (row, column); n is points of an outline; a scan's slices are numbered by ascending z.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

MAX_BYTES = 20_000_000
MAX_READINGS = 1000  # of a file; the most of a real one is below a hundred
MAX_PIXEL = 4096
MAX_READERS = 4
HIGHEST = {
    "subtlety": 5,
    "internalStructure": 5,  # 1 soft tissue, 2 fluid, 3 fat, 4 air; the public annotations have a few 5
    "calcification": 6,
    "sphericity": 5,
    "margin": 5,
    "lobulation": 5,
    "spiculation": 5,
    "texture": 5,
    "malignancy": 5,
}
"""The nine ratings, by their names in the XML, each from 1."""


@dataclass(frozen=True, eq=False)
class Contour:
    """An outline in one slice."""

    z_mm: float  # position of the slice, that of DICOM's ImagePositionPatient
    points: np.ndarray  # n 2, int64
    inclusion: bool  # whether the inside belongs to the nodule; else it is a hole


@dataclass(frozen=True, eq=False)
class Reading:
    """One reader's drawing of one nodule of 3 mm or more."""

    session: int  # which of the scan's reading sessions; readers have no name
    ratings: dict[str, int]
    contours: tuple[Contour, ...]  # in the XML's order


@dataclass(frozen=True)
class Annotations:
    """What one XML file says of a scan."""

    study_uid: str
    series_uid: str
    readings: tuple[Reading, ...]  # of nodules of 3 mm or more, session by session
    num_small: int  # marks of nodules below 3 mm, a point each
    num_unrated: int  # outlines without ratings; they count for nothing, since nobody can say what they are
    num_others: int  # marks of what is no nodule


@dataclass(frozen=True, eq=False)
class Nodule:
    """What the readers of one nodule agree on."""

    readings: tuple[Reading, ...]
    mask: np.ndarray  # rows columns slices, bool: inside at least half of the drawings
    origin: tuple[int, int, int]  # row, column and slice of the mask's first voxel
    ratings: dict[str, float]  # medians over readers
    diameter_mm: float  # greatest extent of an outline within a slice, median over readers

    @property
    def num_readers(self) -> int:
        """How many readers drew it; some drew it twice."""
        return len({reading.session for reading in self.readings})

    @property
    def centre(self) -> tuple[float, float, float]:
        """Row, column and slice of the middle of the mask; of the box that the drawings share where it is empty."""
        inside = np.argwhere(self.mask)
        middle = inside.mean(0) if len(inside) else (np.array(self.mask.shape) - 1) / 2
        row, column, number = (middle + self.origin).tolist()
        return row, column, number


def nodules(
    readings: Sequence[Reading], z_mm: np.ndarray, spacing_mm: float, thickness_mm: float, share: float = 0.5
) -> list[Nodule]:
    """The nodules of a scan, from below upwards.

    Args:
        readings: all drawings.
        z_mm: positions of all slices, ascending.
        spacing_mm: of pixels.
        thickness_mm: of slices; decides how near drawings of one nodule are.
        share: of the readers of a nodule that must have a voxel inside.

    Raises:
        ValueError: an outline lies in no slice.
    """
    found = []
    for members in cluster(readings, z_mm, thickness_mm):
        drawn = [readings[i] for i in members]
        mask, origin = consensus(drawn, z_mm, share)
        ratings = {name: float(np.median([reading.ratings[name] for reading in drawn])) for name in HIGHEST}
        diameter = float(np.median([diameter_mm(reading, spacing_mm) for reading in drawn]))
        found.append(Nodule(tuple(drawn), mask, origin, ratings, diameter))
    return sorted(found, key=lambda nodule: nodule.centre[2])


def cluster(readings: Sequence[Reading], z_mm: np.ndarray, thickness_mm: float) -> list[list[int]]:
    """Which drawings are of one nodule: those whose outlines are joined by steps of at most a tolerance.

    The tolerance is the number of the slice thickness, but a distance in voxels, as it is in pylidc. It shrinks by a
    tenth while a nodule has more than four drawings, down to 0.1.
    """
    points = [_points(reading, z_mm) for reading in readings]
    distance = np.full((len(points), len(points)), np.inf)
    low, high = ([getattr(p, end)(0) for p in points] for end in ("min", "max"))
    for i in range(len(points)):
        for j in range(i):
            if max((low[i] - high[j]).max(), (low[j] - high[i]).max()) <= thickness_mm:
                distance[i, j] = cKDTree(points[j]).query(points[i])[0].min()
    tolerance, labels = thickness_mm, _labels(distance, thickness_mm)
    while len(labels) and np.bincount(labels).max() > MAX_READERS and tolerance * 0.9 >= 0.1:
        tolerance *= 0.9
        labels = _labels(distance, tolerance)
    return [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]


def consensus(
    readings: Sequence[Reading], z_mm: np.ndarray, share: float = 0.5
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Voxels inside at least that share of the drawings: mask rows columns slices, and where it begins."""
    every = np.concatenate([_points(reading, z_mm) for reading in readings])
    low, high = every.min(0), every.max(0)
    masks = [_mask(reading, z_mm, low, high) for reading in readings]
    row, column, number = low.tolist()
    inside = np.asarray(np.sum(masks, axis=0, dtype=np.uint16) >= share * len(masks) - 1e-6)
    return inside, (row, column, number)


def diameter_mm(reading: Reading, spacing_mm: float) -> float:
    """The greatest distance of two points of an outline; 0 where every outline is a point."""
    return max((pdist(c.points).max() * spacing_mm for c in reading.contours if len(c.points) > 1), default=0.0)


def _labels(distance: np.ndarray, tolerance: float) -> np.ndarray:
    labels: np.ndarray = connected_components(distance <= tolerance, directed=False)[1]
    return labels


def slice_of(contour: Contour, z_mm: np.ndarray) -> int:
    """The slice of an outline; ValueError if there is none there."""
    nearest = int(np.abs(z_mm - contour.z_mm).argmin())
    gap = float(np.median(np.diff(z_mm))) if len(z_mm) > 1 else 1.0
    if abs(z_mm[nearest] - contour.z_mm) > max(0.05 * gap, 0.01):
        raise ValueError(
            f"an outline at z = {contour.z_mm:g} mm, but the nearest slice is at {z_mm[nearest]:g} mm; expected the "
            "annotations of this scan"
        )
    return nearest


def _points(reading: Reading, z_mm: np.ndarray) -> np.ndarray:
    """All points of a drawing, n 3: row, column, slice."""
    return np.concatenate(
        [np.insert(contour.points, 2, slice_of(contour, z_mm), axis=1) for contour in reading.contours]
    )


def _mask(reading: Reading, z_mm: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The inside of a drawing in the box from `low` to `high` (both inside): rows columns slices, bool."""
    mask = np.zeros(high - low + 1, dtype=bool)
    for contour in sorted(reading.contours, key=lambda contour: not contour.inclusion):  # holes after what has them
        layer = mask[:, :, slice_of(contour, z_mm) - low[2]]
        first, last = contour.points.min(0), contour.points.max(0)
        window = tuple(slice(a - o, b - o + 1) for a, b, o in zip(first, last, low, strict=False))
        layer[window] = (
            layer[window] | _inside(contour, first, last)
            if contour.inclusion
            else (layer[window] & ~_inside(contour, first, last))
        )
        layer[tuple((contour.points - low[:2]).T)] = False
    return mask


def _inside(contour: Contour, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Pixels inside an outline, in its own box."""
    from matplotlib.path import Path as Polygon

    closed = np.concatenate([contour.points, contour.points[:1]])
    shape = tuple(last - first + 1)
    pixels = np.indices(shape).reshape(2, -1).T + first
    inside: np.ndarray = Polygon(closed, closed=True).contains_points(pixels).reshape(shape)
    return inside


# Reading the XML.


def read_annotations(path: Path) -> Annotations | None:
    """The annotations of a CT scan; None if the file is about something else (a chest film, say).

    Raises:
        ValueError: the file is too large, declares entities, is no XML, or says something impossible.
    """
    root = _parse(path)
    if _name(root) != "LidcReadMessage":
        return None
    header = _child(root, "ResponseHeader")
    readings, num_small, num_unrated, num_others = [], 0, 0, 0
    for session, block in enumerate(_children(root, "readingSession")):
        num_others += sum(1 for _ in _children(block, "nonNodule"))
        for nodule in _children(block, "unblindedReadNodule"):
            ratings = _ratings(nodule)
            contours = tuple(_contour(roi) for roi in _children(nodule, "roi"))
            if not contours:
                raise ValueError("a nodule without an outline; expected one roi or more")
            if all(len(contour.points) == 1 for contour in contours):
                num_small += 1
            elif ratings is None:
                num_unrated += 1
            else:
                readings.append(Reading(session, ratings, contours))
    if len(readings) > MAX_READINGS:
        raise ValueError(f"{len(readings):,} outlined nodules; expected at most {MAX_READINGS:,}")
    study, series = _text(header, "StudyInstanceUID"), _text(header, "SeriesInstanceUid")  # spelt as in the files
    return Annotations(study, series, tuple(readings), num_small, num_unrated, num_others)


def _parse(path: Path) -> Element:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes; expected at most {MAX_BYTES:,}")
    try:
        root: Element = fromstring(path.read_bytes(), forbid_dtd=True)
    except DefusedXmlException as error:
        raise ValueError("it declares a document type or entities; expected plain XML") from error
    except (ParseError, LookupError, ValueError) as error:  # LookupError: an encoding that does not exist
        raise ValueError(f"it is no whole XML ({error})") from error
    return root


def _ratings(nodule: Element) -> dict[str, int] | None:
    """The nine ratings; None where there are none, as of nodules below 3 mm."""
    block = next(_children(nodule, "characteristics"), None)
    if block is None or not len(block):
        return None
    ratings = {name: _integer(_text(block, name), name) for name in HIGHEST}
    for name, rating in ratings.items():
        if not 1 <= rating <= HIGHEST[name]:
            raise ValueError(f"{name} is {rating}; expected 1 to {HIGHEST[name]}")
    return ratings


def _contour(roi: Element) -> Contour:
    points = [
        (_integer(_text(edge, "yCoord"), "yCoord"), _integer(_text(edge, "xCoord"), "xCoord"))
        for edge in _children(roi, "edgeMap")
    ]
    if not points:
        raise ValueError("an outline without points; expected one edgeMap or more")
    if not all(0 <= pixel < MAX_PIXEL for point in points for pixel in point):
        raise ValueError(f"a point of an outline lies outside 0 to {MAX_PIXEL - 1}")
    inclusion = _text(roi, "inclusion").upper()
    if inclusion not in ("TRUE", "FALSE"):
        raise ValueError(f"inclusion is {inclusion[:20]!r}; expected TRUE or FALSE")
    z_mm = _number(_text(roi, "imageZposition"))
    return Contour(z_mm, np.array(points, dtype=np.int64), inclusion == "TRUE")


def _name(element: Element) -> str:
    """The tag without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _children(element: Element, name: str) -> Iterator[Element]:
    return (child for child in element if _name(child) == name)


def _child(element: Element, name: str) -> Element:
    child = next(_children(element, name), None)
    if child is None:
        raise ValueError(f"a {_name(element)} without {name}")
    return child


def _text(element: Element, name: str) -> str:
    return (_child(element, name).text or "").strip()


def _integer(text: str, name: str) -> int:
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10):
        raise ValueError(f"{name} is {text[:20]!r}; expected a whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or "_" in text:
        raise ValueError(f"imageZposition is {text[:20]!r}; expected a number of mm")
    return value
