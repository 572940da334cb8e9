"""From a raw volume to the grid and range that every subject of a store shares.

A volume is (voxels, affine): voxels x y z, float32; affine 4 4, voxel to world in mm, RAS. A 2D image is
(pixels x y, affine 3 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_modules.raw_heads import RawHead
from data_modules.resampling import resample
from data_modules.store import Scan
from lit_medgen.errors import InputError
from lit_medgen.files import replacing
from lit_medgen.images import read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Intensity = Literal["percentile", "minmax", "window"]
Centre = Literal["brain", "grid"]


@dataclass(frozen=True)
class Preprocessing:
    """How raw volumes are brought onto one grid; part of the store's address.

    Args:
        size: voxels along x, y, z.
        field_of_view_mm: extent of the grid along x, y, z, mm; spacing is field_of_view_mm / size.
        centre: middle of the grid on the middle of the brain's bounding box, or of the raw grid.
        intensity: what becomes [0, 1]: from 0 to a robust percentile of the brain, [min, max], or `window`.
        percentile: the robust percentile.
        background: share of the maximum below which a voxel is not brain.
        window: lowest and highest value kept, used with intensity "window".
        raw_head: what makes a brain of a head as the scanner gives it; None: images are brains already, or no heads.
    """

    size: tuple[int, ...] = (128, 128, 128)
    field_of_view_mm: tuple[float, ...] = (192.0, 192.0, 192.0)
    centre: Centre = "brain"
    intensity: Intensity = "percentile"
    percentile: float = 99.5
    background: float = 0.05
    window: tuple[float, float] = (0.0, 255.0)
    raw_head: RawHead | None = None

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or len(self.size) != len(self.field_of_view_mm):
            raise InputError(
                f"data.init_args.size is {list(self.size)} and field_of_view_mm {list(self.field_of_view_mm)}; "
                "give three numbers for each (two for 2D images)."
            )
        if min(self.size) < 1 or min(self.field_of_view_mm) <= 0:
            raise InputError("data.init_args.size and field_of_view_mm must be positive.")
        if not self.window[0] < self.window[1]:
            raise InputError(f"data.init_args.preprocessing.window is {list(self.window)}; give the lower value first.")

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size of the grid, mm."""
        return tuple(float(extent) / size for extent, size in zip(self.field_of_view_mm, self.size, strict=True))

    def __call__(self, voxels: np.ndarray, affine: np.ndarray) -> Prepared:
        """The volume on the grid, in [0, 1]; ValueError for a volume that cannot be normalised."""
        moved = np.eye(len(affine))
        if self.raw_head:
            voxels, moved = self.raw_head(voxels, affine)
        affine = moved @ affine
        scaled, brain = self.normalise(voxels)
        target = self.grid(brain, affine)
        resampled = resample(scaled, affine, self.size, target)
        return Prepared(resampled.clip(0, 1), target, self.cut(brain, affine, target), moved)

    def write(self, scan: Scan, path: Path, stacked: int) -> dict[str, Any]:
        """The volume's file, float16 in [-1, 1]; see `Recipe`."""
        # First: a missing tool is no fault of the scan.
        tools = {"tools": self.raw_head.tools()} if self.raw_head else {}
        prepared = self(*read_image(scan.source))
        if not prepared.voxels.any():
            raise ValueError("nothing is left inside the field of view; expected an image")
        stored = np.moveaxis(2 * prepared.voxels - 1, stacked, 0).astype(np.float16, order="C")
        with replacing(path, stored.nbytes) as file:
            np.save(file, stored)
        facts = {
            "sha256": file.sha256,
            "cut": prepared.cut,
            "affine": _affine_of(3, prepared.affine).tolist(),
            "moved": _affine_of(3, prepared.moved).tolist(),
            "bytes": path.stat().st_size,
        }
        return facts | tools

    def draw(self, scan: Scan, path: Path, stacked: int, facts: dict[str, Any]) -> Figure:
        """The raw image with the outline of what is kept, above the prepared one."""
        from data_modules.figures import preparation

        raw, affine = read_image(scan.source)
        moved, grid = (_affine_of(raw.ndim, np.array(facts.get(name, np.eye(4)))) for name in ("moved", "affine"))
        prepared = np.moveaxis(np.load(path).astype(np.float32) / 2 + 0.5, 0, stacked)
        return preparation(raw, moved @ affine, prepared, grid)

    def normalise(self, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Voxels in [0, 1] and the mask of the brain (all that is above the background)."""
        low, high = float(voxels.min()), float(voxels.max())
        if high - low <= 1e-6 * max(1.0, abs(high)):
            raise ValueError(f"constant volume (all voxels {low:g}); expected an image")
        base, top = {"percentile": (min(low, 0.0), high), "minmax": (low, high), "window": self.window}[self.intensity]
        if self.intensity == "percentile":
            bright = np.percentile(voxels[voxels > base], self.percentile)  # not the maximum: one voxel may be hot
            inside = voxels[voxels > base + self.background * (bright - base)]
            top = float(np.percentile(inside, self.percentile))
        scaled = ((voxels - base) / (top - base)).clip(0, 1)
        brain = scaled > self.background
        if not brain.any():
            raise ValueError(
                f"no voxel lies above the background of the window {base:g} ... {top:g}; expected an image"
            )
        return scaled, brain

    def grid(self, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """The affine of the target grid, axes along RAS."""
        if self.centre == "brain":
            low, high = bounding_box(brain)
            middle = (np.array(low) + np.array(high) - 1) / 2
        else:
            middle = (np.array(brain.shape) - 1) / 2
        dim = len(self.size)
        target = np.diag([*self.spacing_mm, 1.0])
        extent = np.array(self.spacing_mm) * (np.array(self.size) - 1)
        target[:dim, dim] = (affine @ [*middle, 1])[:dim] - extent / 2
        return target

    def cut(self, brain: np.ndarray, affine: np.ndarray, target: np.ndarray) -> float:
        """The share of brain voxels that fall outside the target grid."""
        index = np.argwhere(brain)
        to_target = np.linalg.inv(target) @ affine
        place = index @ to_target[:-1, :-1].T + to_target[:-1, -1]
        inside = ((place >= -0.5) & (place <= np.array(self.size) - 0.5)).all(axis=1)
        return float(1 - inside.mean())


@dataclass(frozen=True)
class Prepared:
    """A volume on the common grid.

    Attributes:
        voxels: x y z, float32 in [0, 1].
        affine: voxel to world, mm.
        cut: share of the brain's voxels that the grid cuts off.
        moved: world of the raw volume to that of this one.
    """

    voxels: np.ndarray
    affine: np.ndarray
    cut: float
    moved: np.ndarray


def _affine_of(dim: int, affine: np.ndarray) -> np.ndarray:
    """The affine of 3D images as that of 2D images (3 3), or the other way round."""
    shared = min(dim, len(affine) - 1)
    full = np.eye(dim + 1)
    full[:shared, :shared], full[:shared, dim] = affine[:shared, :shared], affine[:shared, -1]
    return full


def bounding_box(mask: np.ndarray) -> tuple[list[int], list[int]]:
    """First and one past the last index along each axis where the mask is true."""
    found = [
        np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)
    ]
    return [int(f[0]) for f in found], [int(f[-1]) + 1 for f in found]
