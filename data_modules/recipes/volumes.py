"""From a raw volume to the grid and range that every subject of a store shares.

A volume is (voxels, affine): voxels x y z, float32; affine 4 4, voxel to world in mm, RAS. A 2D image is
(pixels x y, affine 3 3). Of several channels in one file voxels are c x y z, or c x y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_modules.figures import preparation
from data_modules.recipes.channels import own_channels, refuse_names, refuse_other_number
from data_modules.recipes.intensities import (
    EVEN,
    EVEN_INSIDE,
    EVEN_RANGE,
    bounding_box,
    inner_background,
    is_nearly_constant,
    low_end,
    num_levels,
    without_specks,
)
from data_modules.recipes.raw_heads import RawHead
from data_modules.recipes.resampling import affine_of, one_slice, resample, resample_classes
from data_modules.sources import IMAGE, LABEL_MAP, Scan, Source
from data_modules.store import Array, stored_first
from data_modules.volume_files import array_path, save_array
from lit_medgen.errors import InputError
from lit_medgen.images.nifti import PREPROCESSING, Form

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Intensity = Literal["percentile", "minmax", "window"]
Centre = Literal["brain", "grid"]
NonFinite = Literal["refuse", "fill"]
Unsized = Literal["fit", "1mm"]

NUM_CLASSES = 256
"""Of a label map, at most: it is stored in a byte a voxel."""
VERSION = 3  # raised when the same options give other voxels, so that old stores are not taken for new


@dataclass(frozen=True)
class Preprocessing:
    """How raw volumes are brought onto one grid; part of the store's address.

    A volume keeps its size in mm: what lies outside the field of view is cut off. A 2D image whose pixels have no size
    (PNG, DICOM without a pixel spacing, or any that says 1 mm) is scaled as a whole to fit into the field of view, its
    aspect kept and the rest filled with background, so nothing of it is cut off.

    What lies beside an image is brought onto its grid, where it is in the world of the image: the label map by nearest
    neighbour, as whole numbers; other sources as the image itself, but without `raw_head`.

    Args:
        size: voxels along x, y, z.
        field_of_view_mm: extent of the grid along x, y, z, mm; spacing is field_of_view_mm / size.
        centre: middle of the grid on the middle of the brain's bounding box, or of the raw grid.
        intensity: what becomes [0, 1]: from background to a robust percentile of the brain, [min, max], or `window`.
        percentile: the robust percentile.
        background: share of the maximum below which a voxel is not brain.
        window: lowest and highest value kept, used with intensity "window".
        raw_head: what makes a brain of a head as the scanner gives it; None: images are brains already, or no heads.
        form: the one of NIfTI's two matrices that counts where qform and sform differ; "agree" refuses the file.
        non_finite: refuse a volume with NaN or infinite voxels, or fill them with background (-1 in the store).
        without_spacing: 2D images whose pixels have no size are made to "fit", or taken as pixels of "1mm".
        classes: names of the classes of the label maps beside the images, 0 first; empty: label maps are not read.
        class_values: the value that each class has in the files; empty: 0, 1, ... The first class is the background.
        sources: names of other images beside the images that are kept, which images can be made from.
        source_size: voxels of those along x, y, z, in the same field of view; None: as many as of the image.
        channels: names of the channels of an image, such as [t1, flair] or [red, green, blue]; empty: one, unnamed.
    """

    size: tuple[int, ...] = (128, 128, 128)
    field_of_view_mm: tuple[float, ...] = (192.0, 192.0, 192.0)
    centre: Centre = "brain"
    intensity: Intensity = "percentile"
    percentile: float = 99.5
    background: float = 0.05
    window: tuple[float, float] = (0.0, 255.0)
    raw_head: RawHead | None = None
    form: Form = "agree"
    non_finite: NonFinite = "refuse"
    without_spacing: Unsized = "fit"
    classes: tuple[str, ...] = ()
    class_values: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    source_size: tuple[int, ...] | None = None
    channels: tuple[str, ...] = ()
    version: int = field(init=False, default=VERSION)

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or len(self.size) != len(self.field_of_view_mm):
            raise InputError(
                f"{PREPROCESSING}.size is {list(self.size)} and field_of_view_mm {list(self.field_of_view_mm)}; "
                "give three numbers for each (two for 2D images)."
            )
        if min(self.size) < 1 or not 0 < min(self.field_of_view_mm) <= max(self.field_of_view_mm) < np.inf:
            raise InputError(f"{PREPROCESSING}.size and field_of_view_mm must be positive.")
        if not self.window[0] < self.window[1]:
            raise InputError(f"{PREPROCESSING}.window is {list(self.window)}; give the lower value first.")
        if not 50 <= self.percentile <= 100:
            raise InputError(f"{PREPROCESSING}.percentile is {self.percentile:g}; give 50 at least, 100 at most.")
        if not 0 <= self.background < 1:
            raise InputError(f"{PREPROCESSING}.background is {self.background:g}; give a share, 0 or more and below 1.")
        if len(self.classes) > NUM_CLASSES:
            raise InputError(f"{PREPROCESSING}.classes names {len(self.classes)}; give at most {NUM_CLASSES}.")
        if self.class_values and len({*self.class_values}) != len(self.classes):
            raise InputError(
                f"{PREPROCESSING}.class_values is {list(self.class_values)}; give a value of its own for each of the "
                f"{len(self.classes)} classes."
            )
        if {IMAGE, LABEL_MAP}.intersection(self.sources) or len(set(self.sources)) < len(self.sources):
            raise InputError(
                f"{PREPROCESSING}.sources is {list(self.sources)}; give each name once, and neither {IMAGE!r} nor "
                f"{LABEL_MAP!r}, which are read anyway."
            )
        if self.source_size and (len(self.source_size) != len(self.size) or min(self.source_size) < 1):
            raise InputError(
                f"{PREPROCESSING}.source_size is {list(self.source_size)}; give {len(self.size)} numbers, as `size`."
            )
        refuse_names(self.channels, self.sources, self.raw_head is not None)

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size of the grid, mm."""
        return self._spacing_of(self.size)

    def _spacing_of(self, size: tuple[int, ...]) -> tuple[float, ...]:
        return tuple(float(extent) / side for extent, side in zip(self.field_of_view_mm, size, strict=True))

    @property
    def needs(self) -> tuple[str, ...]:
        """What scans should have beside their images."""
        return ((LABEL_MAP,) if self.classes else ()) + self.sources

    @property
    def beside(self) -> tuple[str, ...]:
        """What is read beside an image where it is there."""
        return self.needs + self.channels[1:]

    def arrays(self, stacked: int) -> dict[str, Array]:
        """The channels of the image and other sources as float16 in [-1, 1], label maps as uint8."""
        order = stored_first(stacked, len(self.size))
        kept = {name: Array(self.size, "float16", order, is_channel=True) for name in (IMAGE, *self.channels[1:])}
        if self.classes:
            kept[LABEL_MAP] = Array(self.size, "uint8", order)
        return kept | {name: Array(self.source_size or self.size, "float16", order) for name in self.sources}

    def read(self, source: Source, channels: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Finite voxels of a raw image, and its affine; 2D where the grid is. c *s of a file that has `channels`."""
        flat = len(self.size) == 2
        options: dict[str, Any] = {"flat": True} if flat else {}
        options |= {"channels": len(channels)} if channels else {}
        options |= {"form": self.form} if self.form != "agree" else {}
        options |= {"finite": False} if self.non_finite == "fill" else {}
        voxels, affine = source.read(**options)
        known = np.isfinite(voxels)
        if not known.all():
            if not known.any():
                raise ValueError("all voxels are NaN or infinite; expected an image")
            voxels = np.where(known, voxels, np.float32(self._base(voxels[known])))
        parts = list(voxels) if channels else [voxels]
        if flat and parts[0].ndim == 3 and 1 in parts[0].shape:
            parts, affines = zip(*(one_slice(part, affine) for part in parts), strict=True)
            affine = affines[0]
        if parts[0].ndim != len(self.size):
            raise ValueError(
                f"an image of {parts[0].ndim} dimensions; expected {len(self.size)}, as many as "
                f"{PREPROCESSING}.size has numbers"
            )
        if not channels:
            return parts[0], affine
        refuse_other_number(len(parts), channels)
        return np.stack(parts), affine

    def __call__(self, voxels: np.ndarray, affine: np.ndarray) -> Prepared:
        """The volume on the grid, in [0, 1]; ValueError for a volume that cannot be normalised.

        voxels: *s, or c *s of which every channel is normalised by itself.
        """
        moved = np.eye(len(affine))
        whole = self.centre == "grid"
        if self.raw_head:
            voxels, moved = self.raw_head(voxels, affine)
        elif len(self.size) == 2 and self.without_spacing == "fit" and np.allclose(np.abs(affine[:2, :2]), np.eye(2)):
            # Pixels of 1 x 1 mm, which is what files say that know no size.
            moved, whole = np.diag([*[min(np.array(self.field_of_view_mm) / voxels.shape[-2:])] * 2, 1.0]), True
        affine = moved @ affine
        scaled, brain = self._normalised(voxels)
        target = self.grid(bounding_box(np.ones_like(brain) if whole else brain), affine)
        of_channels = [resample(each, affine, self.size, target).clip(0, 1) for each in scaled]
        resampled = np.stack(of_channels) if voxels.ndim > len(self.size) else of_channels[0]
        if not resampled.any():
            raise ValueError("nothing is left inside the field of view; expected an image")
        return Prepared(resampled, target, self.cut(brain, affine, target), moved)

    def write(self, scan: Scan, path: Path, stacked: int) -> dict[str, Any]:
        """The volume's file, float16 in [-1, 1], and what lies beside it; see `Recipe`."""
        # First: a missing tool is no fault of the scan.
        tools = {"tools": self.raw_head.tools()} if self.raw_head else {}
        sources, own = scan.sources, own_channels(self.channels, scan.beside)
        raw, affine = self.read(sources[IMAGE], own)
        prepared = self(raw, affine)
        image, *others = map(_stored, prepared.voxels) if own else [_stored(prepared.voxels)]
        beside = dict(zip(own[1:], others, strict=True))
        for name in self.beside:
            if name in sources:
                try:
                    beside[name] = self._beside(name, sources[name], prepared)
                except ValueError as error:
                    raise ValueError(f"its {name}, {sources[name]}: {error}") from error
        written = {
            name: save_array(array_path(path, name), np.moveaxis(each, stacked, 0)) for name, each in beside.items()
        }
        facts = {
            **save_array(path, np.moveaxis(image, stacked, 0)),
            "cut": prepared.cut,
            "affine": affine_of(3, prepared.affine).tolist(),
            "moved": affine_of(3, prepared.moved).tolist(),
            "levels": num_levels(raw),
        }
        return facts | tools | ({"beside": written} if written else {})

    def _beside(self, name: str, source: Source, prepared: Prepared) -> np.ndarray:
        """What lies beside an image, on the grid of the image or, in the same field of view, on that of sources."""
        voxels, affine = self.read(source)
        if name == LABEL_MAP:
            values = self.class_values or range(len(self.classes))
            classes = dict(zip(values, self.classes, strict=True))
            return resample_classes(voxels, prepared.moved @ affine, self.size, prepared.affine, classes)
        size = self.size if name in self.channels else self.source_size or self.size
        target, sides = prepared.affine.copy(), np.array(self._spacing_of(size))
        target[:-1, :-1] = np.diag(sides)
        target[:-1, -1] += (sides - self.spacing_mm) / 2  # both grids begin at one corner, not at one voxel's middle
        return _stored(resample(self.normalise(voxels)[0], prepared.moved @ affine, size, target).clip(0, 1))

    def plot(self, scan: Scan, path: Path, stacked: int, facts: dict[str, Any]) -> Figure:
        """The raw image with the outline of what is kept, above the prepared one."""
        moved, grid = (affine_of(len(self.size), np.array(facts.get(name, np.eye(4)))) for name in ("moved", "affine"))
        own = own_channels(self.channels, scan.beside)
        voxels, affine = self.read(scan.sources[IMAGE], own)
        raw = [(each, affine) for each in (voxels if voxels.ndim > len(self.size) else [voxels])]
        raw += [self.read(scan.sources[name]) for name in self.channels[len(raw) :]]
        paths = [path, *(array_path(path, name) for name in self.channels[1:])]
        prepared = [np.moveaxis(np.load(each).astype(np.float32) / 2 + 0.5, 0, stacked) for each in paths]
        return preparation([(each, moved @ of) for each, of in raw], prepared, grid, self.channels or ("",))

    def _normalised(self, voxels: np.ndarray) -> tuple[Sequence[np.ndarray], np.ndarray]:
        """Every channel in [0, 1], of *s or c *s, and the mask of what the first one shows, or all under a window."""
        if voxels.ndim == len(self.size):
            scaled, brain = self.normalise(voxels)
            return [scaled], brain
        if self.intensity == "window":
            scaled, shown = self.normalise(voxels)
            return list(scaled), np.asarray(shown.any(0))
        found = []
        for number, each in enumerate(voxels):
            try:
                found.append(self.normalise(each))
            except ValueError as error:
                raise ValueError(f"its channel {self.channels[number]}: {error}") from error
        return [scaled for scaled, _ in found], found[0][1]

    def normalise(self, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Voxels in [0, 1] and the mask of the brain (all that is above the background, but specks)."""
        low, high = float(voxels.min()), float(voxels.max())
        if high - low <= 1e-6 * max(abs(low), abs(high)):
            raise ValueError(f"constant volume (all voxels {low:g}); expected an image")
        base, top, empty = self._range(voxels)
        scaled = ((voxels - base) / (top - base)).clip(0, 1)
        scaled[empty] = 0
        brain = without_specks(scaled > self.background)
        if not brain.any():
            raise ValueError(
                f"no voxel lies above the background of the window {base:g} ... {top:g}; expected an image"
            )
        if is_nearly_constant(scaled, brain):
            raise ValueError(
                f"it comes out nearly constant: {EVEN_INSIDE:.0%} of its foreground or {EVEN:.1%} of all its voxels "
                f"lie within {EVEN_RANGE:.0%} of the range; are its values, {low:g} to {high:g}, right, and is "
                f"{PREPROCESSING}.intensity?"
            )
        return scaled, brain

    def _range(self, voxels: np.ndarray) -> tuple[float, float, np.ndarray]:
        """What becomes 0 and 1, and the mask of voxels that are background though they do not lie at the low end."""
        base, empty = self._base(voxels), np.zeros(voxels.shape, dtype=bool)
        if self.intensity != "percentile":
            return base, self.window[1] if self.intensity == "window" else float(voxels.max()), empty
        empty = inner_background(voxels, base) if base < 0 else empty
        above = voxels[(voxels > base) & ~empty]
        if not above.size:
            raise ValueError(f"nearly constant: no voxel lies above {base:g}, the background; expected an image")
        bright = np.percentile(above, self.percentile)  # not the maximum: one voxel may be hot
        inside = above[above > base + self.background * (bright - base)]
        return base, float(np.percentile(inside, self.percentile)), empty

    def _base(self, voxels: np.ndarray) -> float:
        """The value that becomes 0."""
        match self.intensity:
            case "window":
                return self.window[0]
            case "minmax":
                return float(voxels.min())
        return low_end(voxels, self.percentile)

    def grid(self, box: tuple[list[int], list[int]], affine: np.ndarray) -> np.ndarray:
        """The affine of the target grid around the middle of a box of voxels, axes along RAS."""
        middle = (np.array(box[0]) + np.array(box[1]) - 1) / 2
        dim = len(self.size)
        target = np.diag([*self.spacing_mm, 1.0])
        extent = np.array(self.spacing_mm) * (np.array(self.size) - 1)
        target[:dim, dim] = (affine @ [*middle, 1])[:dim] - extent / 2
        return target

    def cut(self, brain: np.ndarray, affine: np.ndarray, target: np.ndarray) -> float:
        """The share of brain voxels that fall outside the target grid."""
        index = np.argwhere(brain)
        to_target = np.linalg.inv(target) @ affine
        voxel = index @ to_target[:-1, :-1].T + to_target[:-1, -1]
        inside = ((voxel >= -0.5) & (voxel <= np.array(self.size) - 0.5)).all(axis=1)
        return float(1 - inside.mean())


@dataclass(frozen=True)
class Prepared:
    """A volume on the common grid."""

    voxels: np.ndarray  # x y z, float32 in [0, 1]; c x y z of several channels in a file
    affine: np.ndarray  # voxel to world, mm
    cut: float  # share of the brain's voxels that the grid cuts off
    moved: np.ndarray  # world of the raw volume to that of this one


def _stored(voxels: np.ndarray) -> np.ndarray:
    """[0, 1] as it is stored."""
    return (2 * voxels - 1).astype(np.float16)
