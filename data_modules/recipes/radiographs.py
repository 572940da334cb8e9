"""From a radiograph of 8 bits to the pixels of a store, 8 bits again: means over areas, no window, no equalisation.

    <store>/volumes/<key>.npy     rows columns, uint8

A pixel of the store is the mean of the area that it covers, parts of pixels by their shares, as a detector with larger
elements would measure; so the mean of an image stays what it is at any size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_modules.figures import preparation
from data_modules.recipes.resampling import affine_of
from data_modules.sources import IMAGE, Scan
from data_modules.store import Array
from data_modules.volume_files import save_array
from lit_medgen.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHITE = 255
MIN_RANGE = 16
"""Grey levels between the darkest and the brightest pixel of the store, at least."""
ASPECT = 0.01
"""By which share the sides' ratio of an image may differ from that of the store."""


@dataclass(frozen=True)
class Radiograph:
    """The size at which radiographs are kept; part of the store's address.

    Args:
        size: columns and rows (x, y).
    """

    size: tuple[int, ...] = (64, 64)
    version: int = field(init=False, default=1)  # raised when the same size gives other pixels

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"data.init_args.size is {list(self.size)}; give columns and rows, such as [64, 64].")

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing stands beside a radiograph."""
        return ()

    def arrays(self, stacked: int) -> dict[str, Array]:
        """The image as uint8, rows first; 0 and 255 become -1 and 1."""
        return {IMAGE: Array(self.size, "uint8", (1, 0), (0.0, float(WHITE)))}

    def write(self, scan: Scan, path: Path, stacked: int) -> dict[str, Any]:
        """The image's file; see `Recipe`."""
        raw = self.read(scan)
        pixels = self(raw)
        if np.ptp(pixels) < MIN_RANGE:
            raise ValueError(f"nearly constant: grey levels {pixels.min()} to {pixels.max()}; expected a radiograph")
        scale = np.array(raw.shape) / self.size
        affine = np.diag([*scale, 1.0, 1.0])
        affine[:2, 3] = (scale - 1) / 2
        return {**save_array(path, pixels.T), "affine": affine.tolist(), "delivered": list(raw.shape)}

    def read(self, scan: Scan) -> np.ndarray:
        """The image as delivered, x y in [0, 255]; ValueError if it is none of 8 bits, or of another shape."""
        raw, _ = scan.sources[IMAGE].read(flat=True)
        if raw.ndim != 2 or (raw != raw.round()).any() or raw.min() < 0 or raw.max() > WHITE:
            raise ValueError(
                f"values from {raw.min():g} to {raw.max():g}; expected grey levels of 8 bits, 0 to {WHITE}"
            )
        (width, height), (columns, rows) = raw.shape, self.size
        if abs(width * rows / (height * columns) - 1) > ASPECT:
            raise ValueError(f"{width} x {height} pixels; expected sides in the ratio {columns}:{rows} of the store")
        return raw

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Means over the areas of the store's pixels, rounded; x y -> x y uint8."""
        along, across = (shares(side, kept) for side, kept in zip(raw.shape, self.size, strict=True))
        return np.asarray((along @ raw @ across.T).round().clip(0, WHITE).astype(np.uint8))

    def plot(self, scan: Scan, path: Path, stacked: int, facts: dict[str, Any]) -> Figure:
        """The image as delivered above the prepared one."""
        kept = np.load(path).T.astype(np.float32) / WHITE
        return preparation([(self.read(scan), np.eye(3))], [kept], affine_of(2, np.array(facts["affine"])))


@lru_cache
def shares(side: int, kept: int) -> np.ndarray:
    """Share of each of `side` pixels in the mean of each of `kept` that cover the same length.

    kept side, rows sum to 1. Where an image is enlarged, a pixel lies in parts of one or two.
    """
    edges = np.arange(kept + 1) * (side / kept)
    begin, end = edges[:-1, None], edges[1:, None]
    pixel = np.arange(side)
    overlap = (np.minimum(end, pixel + 1) - np.maximum(begin, pixel)).clip(0)
    return np.asarray((overlap * (kept / side)).astype(np.float32))
