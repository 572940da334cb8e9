"""What is seen of an image: slices through a voxel, between the black and the white of a window.

Values are in the units of the data (HU, or those of its window); c channels, *s spatial axes, x y or x y z.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.images.grids import three_planes

WHOLE, OWN = "whole range", "own"
HU_WINDOWS = {"lung": (-1350.0, 150.0), "mediastinum": (-160.0, 240.0), "bone": (-500.0, 1300.0)}
"""Black and white in HU: level -600 and width 1500, 40 and 400, 400 and 1800."""
SHOWN_PX = 512
"""Pixels of the longer side of a slice on the page."""


def windows(spec: DataSpec) -> dict[str, tuple[float, float]]:
    """Name of a window -> the values shown as black and white; windows of CT for images in HU alone."""
    return {WHOLE: spec.intensity_window} | (HU_WINDOWS if spec.intensity_unit == "HU" else {})


def window_of(name: str, spec: DataSpec, level: float, width: float) -> tuple[float, float]:
    """The values shown as black and white in a window of that name; `OWN` is by level and width."""
    if name != OWN:
        return windows(spec)[name]
    if not width > 0:
        raise InputError(f"the width of the window is {width:g}; give more than 0.")
    return level - width / 2, level + width / 2


def planes(values: np.ndarray, spec: DataSpec, at: Sequence[int], channel: int) -> list[np.ndarray]:
    """Slices of an image c *s, rows columns each, or rows columns 3 of colours; of a volume those that meet at a voxel.

    They are magnified, so that a pixel is as wide and as high as in the body.
    """
    channels = values if spec.is_colour else values[channel : channel + 1]
    x, y, z = (*spec.spacing_mm, 1.0)[:3]
    sides = [(y, x), (z, x), (z, y)] if len(spec.size) == 3 else [(y, x)]
    of_channels = [three_planes(each, at) if each.ndim == 3 else [each.T] for each in channels]
    stacked = [np.stack(each, axis=-1) for each in zip(*of_channels, strict=True)]
    magnified = [_magnified(plane, side) for plane, side in zip(stacked, sides, strict=True)]
    return magnified if spec.is_colour else [plane[..., 0] for plane in magnified]


def _magnified(plane: np.ndarray, side: tuple[float, float]) -> np.ndarray:
    """Pixels repeated to squares on the screen: `side` says how high and how wide one is."""
    height, width = (length * mm for length, mm in zip(plane.shape, side, strict=False))
    scale = SHOWN_PX / max(height, width)
    rows, columns = (max(1, round(extent * scale)) for extent in (height, width))
    row = (np.arange(rows) + 0.5) / rows * plane.shape[0]
    column = (np.arange(columns) + 0.5) / columns * plane.shape[1]
    return plane[row.astype(int)][:, column.astype(int)]


def shades(plane: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """The plane as uint8: 0 up to the lower value of the window, 255 from the upper one on."""
    low, high = window
    return np.asarray(((plane - low) / (high - low) * 255).clip(0, 255).round().astype(np.uint8))


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of any heights in one, each in the middle of the highest."""
    height = max(len(each) for each in pictures)
    spare = [height - len(each) for each in pictures]
    return np.hstack(
        [
            np.pad(each, [(gap // 2, gap - gap // 2), *[(0, 0)] * (each.ndim - 1)])
            for each, gap in zip(pictures, spare, strict=True)
        ]
    )
