"""Figures of a preparation: what came in, what is kept of it, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_modules.recipes.resampling import resample
from lit_medgen.axes import is_colour
from lit_medgen.images.grids import three_planes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ["#101418", "#6b4f3a", "#b5651d", "#f2e3c6", "#3f7fbf", "#ffd92f", "#fc8d3c", "#e31a1c"]
"""Of the classes of a CT slice; nodules are the warm ones at the end."""


def preparation(
    raw: Sequence[tuple[np.ndarray, np.ndarray]],
    prepared: Sequence[np.ndarray],
    grid: np.ndarray,
    names: Sequence[str] = ("",),
) -> Figure:
    """The raw image with the outline of what is kept, above the prepared one; two rows for each channel, or in colour.

    Args:
        raw: of each channel x y z as delivered (2D images: x y), with its affine, to the world of `prepared`.
        prepared: of each channel, in [0, 1], 0 where nothing is kept.
        grid: affine of `prepared`.
        names: of the channels.
    """
    from matplotlib.figure import Figure

    delivered = [resample(voxels.astype(np.float32), affine, prepared[0].shape, grid) for voxels, affine in raw]
    tops = [np.percentile(each, 99.5) or 1.0 for each in delivered]
    if is_colour(names):
        shown = {"": ([each / max(tops) for each in delivered], prepared)}
    else:
        before = [each / top for each, top in zip(delivered, tops, strict=True)]
        shown = {name: ([one], [other]) for name, one, other in zip(names, before, prepared, strict=True)}
    num = len(_planes(prepared[:1]))
    figure = Figure(figsize=(3 * num, 6.4 * len(shown)), facecolor="black", layout="constrained")
    axes = figure.subplots(2 * len(shown), num, squeeze=False)
    for row, (name, (before, after)) in enumerate(shown.items()):
        outlines = _planes([np.any([each > 0 for each in after], axis=0).astype(float)])
        for axis, plane, outline in zip(axes[2 * row], _planes(before), outlines, strict=True):
            axis.imshow(plane.clip(0, 1), cmap="gray", vmin=0, vmax=1)
            if outline.min() < outline.max() and min(outline.shape) > 1:
                axis.contour(outline, [0.5], colors="orange", linewidths=0.8)
        for axis, plane in zip(axes[2 * row + 1], _planes(after), strict=True):
            axis.imshow(plane, cmap="gray", vmin=0, vmax=1)
        of = f"{name}, " if name else ""
        axes[2 * row, 0].set_title(f"{of}as delivered; outline: what is kept", color="white", fontsize=9, loc="left")
        axes[2 * row + 1, 0].set_title(f"{of}prepared", color="white", fontsize=9, loc="left")
    for axis in axes.flat:
        axis.axis("off")
    return figure


def _planes(channels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Planes of an image, rows columns each, or rows columns 3 of three channels, x y z or x y each."""
    of_each = [three_planes(each) if each.ndim == 3 else [each.T] for each in channels]
    return of_each[0] if len(channels) == 1 else [np.stack(plane, axis=-1) for plane in zip(*of_each, strict=True)]


def annotated_slice(
    image: np.ndarray, labels: np.ndarray, classes: Sequence[str], centre: tuple[float, float] | None, crop: int = 64
) -> Figure:
    """A CT slice, its label map, and its nodule with the outline of the map.

    Args:
        image: HU, rows columns.
        labels: classes, rows columns.
        classes: their names.
        centre: row and column of the nodule; None: no nodule.
        crop: side of the nodule's picture, pixels.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = ListedColormap(COLOURS[: len(classes)])
    figure = Figure(figsize=(10.5, 4.2), facecolor="black", layout="constrained")
    slice_axis, map_axis, nodule_axis = figure.subplots(1, 3)
    slice_axis.imshow(image, cmap="gray", vmin=-1024, vmax=400)
    map_axis.imshow(labels, cmap=colours, vmin=-0.5, vmax=len(classes) - 0.5, interpolation="nearest")
    if centre is not None:
        row, column = (int(middle) - crop // 2 for middle in centre)
        nodule_axis.imshow(image, cmap="gray", vmin=-1024, vmax=400)
        nodule_axis.contour(labels >= len(classes) - 3, [0.5], colors="orange", linewidths=0.8)
        nodule_axis.set(xlim=(column, column + crop), ylim=(row + crop, row))
    for axis, title in zip((slice_axis, map_axis, nodule_axis), ("slice", "label map", "nodule"), strict=True):
        axis.axis("off")
        axis.set_title(title if centre is not None or axis is not nodule_axis else "no nodule", color="white")
    handles = [Patch(color=colours(i), label=name) for i, name in enumerate(classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(classes), fontsize=7)
    return figure


def ct_statistics(facts: Sequence[dict[str, Any]], classes: Sequence[str], ratings: Sequence[str]) -> Figure:
    """Shares of classes, slice thickness, and histograms of the nodules' ratings, of the facts that the store keeps."""
    from matplotlib.figure import Figure

    nodules = [nodule for scan in facts for nodule in scan["nodules"]]
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    axes = figure.subplots(3, 4).flat
    shares, thickness = next(axes), next(axes)
    pixels = np.sum([scan["pixels"] for scan in facts], axis=0)
    shares.barh(classes, pixels / pixels.sum(), log=True)
    shares.set(title=f"share of pixels, {sum(len(scan['images']) for scan in facts)} slices")
    shares.invert_yaxis()
    values, counts = np.unique([scan["thickness_mm"] for scan in facts], return_counts=True)
    thickness.bar([f"{value:g}" for value in values], counts)
    thickness.set(title=f"slice thickness, mm, {len(facts)} scans")
    for name, axis in zip((*ratings, "diameter_mm"), axes, strict=True):
        edges = 12 if name == "diameter_mm" else np.arange(0.75, 7, 0.5)
        axis.hist([nodule[name] for nodule in nodules], bins=edges)
        axis.set(title=f"{name}, {len(nodules)} nodules")
    return figure
