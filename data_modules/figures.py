"""Figures of a preparation: what came in, what is kept of it, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_modules.recipes.resampling import resample
from lit_medgen.images.grids import three_planes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ["#101418", "#6b4f3a", "#b5651d", "#f2e3c6", "#3f7fbf", "#ffd92f", "#fc8d3c", "#e31a1c"]
"""Of the classes of a CT slice; nodules are the warm ones at the end."""


def preparation(raw: np.ndarray, affine: np.ndarray, prepared: np.ndarray, grid: np.ndarray) -> Figure:
    """The raw image with the outline of what is kept, above the prepared one.

    Args:
        raw: x y z as delivered; 2D images: x y.
        affine: of `raw`, to the world of `prepared`.
        prepared: in [0, 1], 0 where nothing is kept.
        grid: affine of `prepared`.
    """
    from matplotlib.figure import Figure

    before = resample(raw.astype(np.float32), affine, prepared.shape, grid)
    before = (before / (np.percentile(before, 99.5) or 1.0)).clip(0, 1)
    planes, outlines, after = (
        three_planes(image) if image.ndim == 3 else [image.T]
        for image in (before, (prepared > 0).astype(float), prepared)
    )
    figure = Figure(figsize=(3 * len(planes), 6.4), facecolor="black", layout="constrained")
    axes = figure.subplots(2, len(planes), squeeze=False)
    for column, (plane, outline, result) in enumerate(zip(planes, outlines, after, strict=True)):
        axes[0, column].imshow(plane, cmap="gray", vmin=0, vmax=1)
        if outline.min() < outline.max() and min(outline.shape) > 1:
            axes[0, column].contour(outline, [0.5], colors="orange", linewidths=0.8)
        axes[1, column].imshow(result, cmap="gray", vmin=0, vmax=1)
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].set_title("as delivered; outline: what is kept", color="white", fontsize=9, loc="left")
    axes[1, 0].set_title("prepared", color="white", fontsize=9, loc="left")
    return figure


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
