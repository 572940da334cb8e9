"""From a CT scan of LIDC-IDRI and its annotations to slices in HU with label maps, and back out of the store.

    <store>/volumes/<key>.npy             n rows columns, int16 HU as delivered or means of blocks of pixels, no window
    <store>/volumes/<key>.label_map.npy   n rows columns, uint8 classes
    <store>/volumes/<key>.json            of every slice its number in the scan and its nodule; of every nodule its
                                          ratings and where it lies

Slices are seen from below, the patient's left on the right: upside-down ones are turned, and their annotations with
them. A slice is an item of its own, an image x y whose x runs along a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_modules.figures import annotated_slice
from data_modules.lidc.annotations import Nodule, Reading, nodules, read_annotations
from data_modules.lidc.reduction import block_side, reduced_affine, reduced_hu, reduced_labels, reduced_position
from data_modules.lidc.semantic_maps import CLASSES, PRESETS, Preset, PresetName, Segmentation, label_map
from data_modules.sources import IMAGE, LABEL_MAP, File, Scan, Series
from data_modules.store import Array
from data_modules.volume_files import array_path, save_array
from lit_medgen.errors import InputError
from lit_medgen.images.dicom import SAME, open_series, same
from lit_medgen.images.dicom import Series as Stack
from lit_medgen.images.dicom_slices import Slice, open_slices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANNOTATIONS = "annotations"
"""Name of the XML file beside a series."""
LOWEST_HU = -1024
AIR_HU = (-1100.0, -900.0)
"""Where the darkest hundredth of some slice must lie: a scan has air around or inside the body."""
FAT_HU = -50.0
"""Where that of every slice must lie below, whatever the field of view."""
TISSUE_HU = (-200.0, 200.0)
"""Fat, fluid and muscle: a fiftieth of every slice at least."""
MAPS_VERSION = 3  # raised when maps, masks or the choice of slices change, so that old stores are not taken for new
NODULE = ("malignancy", "lobulation", "spiculation", "texture", "subtlety", "diameter_mm")
"""Facts of the largest nodule of a slice that are its attributes; NaN without one."""


@dataclass(frozen=True)
class CTSlices:
    """Which slices are kept, and what their maps say; part of the store's address.

    Args:
        size: rows and columns of every slice as delivered; others are refused.
        pixels: rows and columns that are kept, `size` divided by a whole number: HU are means over blocks of pixels,
            and a block with a nodule in it is nodule. None: as delivered. Maps are made before.
        share: of a scan's slices that are kept: those with a nodule, even if they are more, and evenly spread others.
        max_thickness_mm: scans of thicker slices are refused.
        min_readers: a nodule counts if so many drew it.
        consensus: share of its readers that must have a voxel inside their outline.
        preset: window, bands and classes of the thesis or of its code; `alike` is the thesis with one class for all
            nodules, whose maps leave the malignancy to be asked for.
        segmentation: how maps are made: "lungs" looks for the body and its lungs, as whole slices need; "bands" goes by
            the HU of each pixel alone, for boxes cut from scans. Those need not show air and tissue, either.
        single_slices: a series of one slice is taken, as from collections of slices; False: it is refused, since of a
            scan it is what a broken download leaves.
    """

    size: tuple[int, ...] = (512, 512)
    share: float = 0.2
    max_thickness_mm: float = 2.5
    min_readers: int = 3
    consensus: float = 0.5
    preset: PresetName = "thesis"
    pixels: tuple[int, ...] | None = None
    segmentation: Segmentation = "lungs"
    single_slices: bool = False
    numbers: Preset = field(init=False)
    maps_version: int = field(init=False, default=MAPS_VERSION)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", PRESETS[self.preset])  # the numbers, not their name, make the maps
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"data.init_args.ct.size is {list(self.size)}; give rows and columns.")
        block_side(self.size, self.pixels)
        if not 0 <= self.share <= 1:
            raise InputError(f"data.init_args.ct.share is {self.share}; give 0 to 1.")
        if not 0 < self.consensus <= 1:
            raise InputError(f"data.init_args.ct.consensus is {self.consensus}; give more than 0, at most 1.")
        if not 1 <= self.min_readers <= 4:
            raise InputError(f"data.init_args.ct.min_readers is {self.min_readers}; give 1 to 4.")

    @property
    def kept_size(self) -> tuple[int, ...]:
        """Rows and columns of a slice in the store."""
        return self.pixels or self.size

    @property
    def needs(self) -> tuple[str, ...]:
        """The XML file about a series."""
        return (ANNOTATIONS,)

    def arrays(self, stacked: int) -> dict[str, Array]:
        """Slices as int16 HU with their label maps, uint8; rows first, several in a file."""
        low, high = self.numbers.window
        size, order = self.kept_size[::-1], (1, 0)
        return {
            IMAGE: Array(size, "int16", order, (float(low), float(high))),
            LABEL_MAP: Array(size, "uint8", order),
        }

    def write(self, scan: Scan, path: Path, stacked: int) -> dict[str, Any]:
        """HU, maps and facts of the slices kept; see `Recipe`."""
        ct, found, num_unrated = self._open(scan)
        kept = self._kept(len(ct.slices), found, ct.seed)
        images = [ct.upright(image) for image in _hounsfield([ct.slices[n] for n in kept], self.segmentation)]
        facts, maps, slices = [ct.facts(nodule) for nodule in found], [], []
        for number, image in zip(kept, images, strict=True):
            inside = {i: mask for i, nodule in enumerate(found) if (mask := ct.mask(nodule, number)).any()}
            rated = [(mask, found[i].ratings["malignancy"]) for i, mask in inside.items()]
            labels = label_map(image.astype(np.float32), ct.delivered_mm, self.numbers, rated, self.segmentation)
            maps.append(reduced_labels(labels, ct.block))
            largest = max(inside, key=lambda i: int(inside[i].sum()), default=None)
            slices.append(_facts_of_slice(ct, number, largest, facts))
        classes = np.stack(maps)
        beside = {LABEL_MAP: save_array(array_path(path, LABEL_MAP), classes)}
        return {
            **save_array(path, np.stack([reduced_hu(image, ct.block) for image in images])),
            "beside": beside,
            "affine": ct.affine(kept[0]).tolist(),
            "spacing_mm": ct.spacing_mm,
            "thickness_mm": ct.thickness_mm,
            "num_slices": len(ct.slices),
            "num_duplicates": ct.num_duplicates,
            "num_unrated": num_unrated,
            "images": slices,
            "nodules": facts,
            "pixels": np.bincount(classes.ravel(), minlength=len(CLASSES)).tolist(),
        }

    def _open(self, scan: Scan) -> tuple[_CT, list[Nodule], int]:
        """The scan, its nodules, and how many outlines have no ratings."""
        raw, xml = (scan.sources[name] for name in (IMAGE, ANNOTATIONS))
        assert isinstance(raw, Series)
        assert isinstance(xml, File)
        series = _stack(raw.files, self.single_slices)
        first = series.slices[0]
        if first.shape != self.size:
            raise ValueError(f"slices of {first.shape}; expected {self.size} rows and columns")
        if not same(first.spacing_mm[:1], first.spacing_mm[1:]):
            raise ValueError(f"pixels of {first.spacing_mm[0]:g} x {first.spacing_mm[1]:g} mm; expected squares")
        for one in series.slices:
            if not 0 < one.thickness_mm <= self.max_thickness_mm * (1 + SAME):  # NaN is refused, too
                raise ValueError(f"slices of {one.thickness_mm:g} mm; expected at most {self.max_thickness_mm:g} mm")
            if not same([one.thickness_mm], [first.thickness_mm]):
                raise ValueError(
                    f"slices of {first.thickness_mm:g} and {one.thickness_mm:g} mm; expected one thickness"
                )
        ct = _CT(series, block_side(self.size, self.pixels))
        try:
            annotations = read_annotations(xml.file)
            if annotations is None or annotations.series_uid != first.series:
                raise ValueError("it is about another series")
            return ct, ct.nodules(annotations.readings, self), annotations.num_unrated
        except ValueError as error:
            raise ValueError(f"{xml.file.name}: {error}") from error

    def _kept(self, num_slices: int, found: Sequence[Nodule], seed: int) -> list[int]:
        """Slices with a nodule, and evenly spread ones from a random first one up to the share of the scan."""
        kept = {nodule.origin[2] + int(k) for nodule in found for k in np.flatnonzero(nodule.mask.any((0, 1)))}
        others = [number for number in range(num_slices) if number not in kept]
        missing = min(max(round(self.share * num_slices) - len(kept), 0 if kept else 1), len(others))
        offset = np.random.default_rng(seed).random()
        chosen = ((np.arange(missing) + offset) / max(missing, 1) * len(others)).astype(int)
        return sorted(kept | {others[i] for i in chosen})

    def plot(self, scan: Scan, path: Path, stacked: int, facts: dict[str, Any]) -> Figure:
        """A slice, its map and its nodule."""
        with_nodule = [i for i, one in enumerate(facts["images"]) if one["nodule"] is not None]
        every = with_nodule or range(len(facts["images"]))
        i = every[len(every) // 2]
        number = facts["images"][i]["nodule"]
        image, labels = (np.load(file, mmap_mode="r")[i] for file in (path, array_path(path, LABEL_MAP)))
        centre = None if number is None else facts["nodules"][number]["centre"][:2]
        return annotated_slice(np.asarray(image), np.asarray(labels), CLASSES, centre)


class _CT:
    """A series in the order and orientation of the store, whose pixels are blocks of those delivered."""

    def __init__(self, series: Stack, block: int) -> None:
        slices, first = list(series.slices), series.slices[0]
        normal = np.cross(first.along, first.down)
        if min(abs(first.along[0]), abs(first.down[1]), abs(normal[2])) < 0.99:
            raise ValueError("slices are not axial; expected rows from right to left and columns from front to back")
        self.slices = slices if normal[2] > 0 else slices[::-1]
        self.flips = first.down[1] > 0, first.along[0] > 0  # RAS: rows run to the front, columns to the right
        self.shape = first.shape
        self.num_duplicates = series.num_duplicates
        # Of the series alone, so that other settings choose the same slices.
        self.seed = int(hashlib.sha256(first.series.encode()).hexdigest()[:16], 16)
        self.block, self.delivered_mm, self.thickness_mm = block, first.spacing_mm[0], first.thickness_mm
        self.spacing_mm = block * self.delivered_mm
        self.z_mm = np.array([one.position[2] for one in self.slices])

    def nodules(self, readings: Sequence[Reading], recipe: CTSlices) -> list[Nodule]:
        """Those that enough readers drew."""
        for reading in readings:
            for contour in reading.contours:
                if (contour.points.max(0) >= self.shape).any():
                    raise ValueError(f"an outline leaves the slice of {self.shape} rows and columns")
        found = nodules(readings, self.z_mm, self.delivered_mm, self.thickness_mm, recipe.consensus)
        return [nodule for nodule in found if nodule.num_readers >= recipe.min_readers]

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Rows columns, seen from below."""
        return np.flip(pixels, tuple(axis for axis, flip in enumerate(self.flips) if flip))

    def mask(self, nodule: Nodule, number: int) -> np.ndarray:
        """A nodule in a slice of that number as delivered, rows columns."""
        whole = np.zeros(self.shape, dtype=bool)
        row, column, first = nodule.origin
        if 0 <= number - first < nodule.mask.shape[2]:
            layer = nodule.mask[:, :, number - first]
            whole[row : row + layer.shape[0], column : column + layer.shape[1]] = layer
        return self.upright(whole)

    def affine(self, number: int) -> np.ndarray:
        """Of a slice as an image x y: column and row to world, mm, RAS, 4 4."""
        one = self.slices[number]
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = one.along * one.spacing_mm[1], one.down * one.spacing_mm[0]
        affine[:3, 2], affine[:3, 3] = np.cross(one.along, one.down), one.position
        turn = np.eye(4)
        for axis, flip in enumerate(reversed(self.flips)):
            if flip:
                turn[axis, axis], turn[axis, 3] = -1, one.shape[1 - axis] - 1
        return reduced_affine(affine @ turn, self.block)

    def facts(self, nodule: Nodule) -> dict[str, Any]:
        """What the store says of a nodule; rows and columns are those of the stored slice, slices of the scan.

        Its voxels are counted as delivered.
        """
        row, column, number = nodule.centre
        row, column = (
            size - 1 - middle if flip else middle
            for middle, size, flip in zip((row, column), self.shape, self.flips, strict=True)
        )
        return {
            "centre": [reduced_position(row, self.block), reduced_position(column, self.block), number],
            "slices": [nodule.origin[2], nodule.origin[2] + nodule.mask.shape[2] - 1],
            "voxels": int(nodule.mask.sum()),
            "num_readers": nodule.num_readers,
            "diameter_mm": nodule.diameter_mm,
            **nodule.ratings,
        }


def _stack(files: Sequence[Path], single_slices: bool) -> Stack:
    """The slices of a series, or the only one."""
    if single_slices and len(files) == 1 and len(slices := open_slices(files[0])) == 1:
        return Stack(tuple(slices), np.zeros(3), num_duplicates=0)
    return open_series(files)


def _facts_of_slice(ct: _CT, number: int, largest: int | None, nodules: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the store says of a slice; `largest` is the number of the nodule whose ratings are the slice's."""
    nodule = dict.fromkeys(NODULE, np.nan) if largest is None else nodules[largest]
    return {
        "slice": number,
        "nodule": largest,
        "affine": ct.affine(number).tolist(),
        "attributes": {name: float(nodule[name]) for name in NODULE},
        "facts": {
            "spacing_mm": [ct.spacing_mm],
            "nodule": [np.nan, np.nan] if largest is None else nodules[largest]["centre"][1::-1],
        },
    }


def _hounsfield(slices: Sequence[Slice], segmentation: Segmentation) -> list[np.ndarray]:
    """HU of slices, int16; ValueError where they cannot be HU."""
    images, darkest = [], []
    for one in slices:
        values = one.read()
        if values.max() > np.iinfo(np.int16).max or (values != values.round()).any():
            raise ValueError(f"{one.path.name}: values up to {values.max():g}; expected whole HU of 16 bits")
        field = values[values > LOWEST_HU - 300]  # without padding
        darkest.append(float(np.percentile(field, 1, method="nearest")) if field.size else 0.0)
        tissue = ((values > TISSUE_HU[0]) & (values < TISSUE_HU[1])).mean()
        if segmentation == "lungs" and (darkest[-1] > FAT_HU or tissue < 0.02):
            raise ValueError(
                f"{one.path.name}: the darkest hundredth of its pixels is {darkest[-1]:.0f} HU and {tissue:.1%} are "
                "those of tissue; expected air or fat, and tissue (a wrong rescale slope or intercept?)"
            )
        images.append(values.clip(LOWEST_HU).astype(np.int16))  # padding lies below air
    if segmentation == "lungs" and not AIR_HU[0] <= min(darkest) <= AIR_HU[1]:
        raise ValueError(f"nothing is darker than {min(darkest):.0f} HU; expected air, about -1000 (a wrong rescale?)")
    if min(darkest) > FAT_HU:
        raise ValueError(f"nothing is darker than {min(darkest):.0f} HU; expected lung, air or fat (a wrong rescale?)")
    return images
