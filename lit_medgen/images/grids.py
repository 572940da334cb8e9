"""Figures of images: the three planes of volumes side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_medgen.images.png import write_figure

if TYPE_CHECKING:
    from torch import Tensor


def three_planes(volume: np.ndarray, at: Sequence[int] | None = None) -> list[np.ndarray]:
    """Axial, coronal and sagittal slice of an x y z volume, turned so that up is up: rows columns each.

    They meet at a voxel x y z; None: the middle one.
    """
    x, y, z = at or [length // 2 for length in volume.shape]
    return [np.flipud(plane.T) for plane in (volume[:, :, z], volume[:, y, :], volume[x, :, :])]


def mosaic(volumes: Tensor, colour: bool = False) -> np.ndarray:
    """One image in [0, 1]: a column for every volume (b c x y z in [-1, 1]), a row for every plane of every channel.

    2D images (b c x y) make a row for every channel. With `colour`, three channels are red, green and blue, and the
    result is rows columns 3 instead of rows columns.
    """
    return np.hstack(columns_of(volumes, colour))


def columns_of(volumes: Tensor, colour: bool = False) -> list[np.ndarray]:
    """Planes of each volume (b c x y z in [-1, 1]) below each other, in [0, 1], those of the first channel first.

    Rows columns each, or rows columns 3 with `colour`; of 2D images a plane for each channel.
    """
    images = ((volumes.float().cpu().numpy() + 1) / 2).clip(0, 1).astype(np.float64)
    columns = []
    for image in images:
        channels = [three_planes(each) if each.ndim == 3 else [each.T] for each in image]
        if colour and len(channels) == 3:
            planes = [np.stack(plane, axis=-1) for plane in zip(*channels, strict=True)]
        else:
            planes = [plane for channel in channels for plane in channel]
        columns.append(_stacked(planes))
    return columns


def _stacked(planes: Sequence[np.ndarray]) -> np.ndarray:
    """Planes below each other, each in the middle of the width of the widest."""
    width = max(plane.shape[1] for plane in planes)
    lefts = [(width - plane.shape[1]) // 2 for plane in planes]
    padding = [
        ((0, 0), (left, width - plane.shape[1] - left), *[(0, 0)] * (plane.ndim - 2))
        for left, plane in zip(lefts, planes, strict=True)
    ]
    return np.vstack([np.pad(plane, around) for plane, around in zip(planes, padding, strict=True)])


def save_figure(path: Path, rows: Mapping[str, Tensor], columns: int, colour: bool = False) -> None:
    """A PNG with a labelled block of planes (see `mosaic`) for each entry (b c x y z or b c x y in [-1, 1])."""
    from matplotlib.figure import Figure

    blocks = {label: mosaic(volumes[:columns], colour) for label, volumes in rows.items() if len(volumes)}
    heights = [block.shape[0] / block.shape[1] for block in blocks.values()]
    figure = Figure(figsize=(10, 10 * sum(heights) + 0.4 * len(blocks)), facecolor="black", layout="constrained")
    axes = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (label, block) in zip(axes, blocks.items(), strict=True):
        axis.imshow(block, cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
        axis.set_title(label, color="white", fontsize=11, loc="left")
        axis.axis("off")
    write_figure(path, figure)


def save_strip(path: Path, rows: Sequence[Tensor], name: str, values: Sequence[float], colour: bool = False) -> None:
    """A PNG of rows of images (b c x y z or b c x y in [-1, 1]), each below the value of an attribute it shows."""
    from matplotlib.figure import Figure

    blocks = [mosaic(images, colour) for images in rows]
    heights = [block.shape[0] / block.shape[1] for block in blocks]
    figure = Figure(figsize=(10, 10 * sum(heights) + 0.5), facecolor="black", layout="constrained")
    axes = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, block in zip(axes, blocks, strict=True):
        axis.imshow(block, cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
        width = block.shape[1] / len(values)
        middles = [width * (k + 0.5) - 0.5 for k in range(len(values))]
        axis.set_xticks(middles, [f"{value:.4g}" for value in values] if axis is axes[0] else [""] * len(values))
        axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, colors="white", length=0)
        axis.set_yticks([])
    axes[0].set_title(name, color="white", fontsize=11, loc="left")
    write_figure(path, figure)


def enlarge(image: np.ndarray, min_side: int = 512) -> np.ndarray:
    """Whole-number magnification, so that small pictures can be seen."""
    factor = max(1, min_side // min(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
