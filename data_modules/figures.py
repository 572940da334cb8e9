"""Figures of a preparation: what came in, what is kept of it, and what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_modules.resampling import resample
from lit_medgen.images.grids import three_planes
from lit_medgen.images.png import write_figure


def save_preparation(path: Path, raw: np.ndarray, affine: np.ndarray, prepared: np.ndarray, grid: np.ndarray) -> None:
    """A PNG of the raw image with the outline of what is kept, above the prepared one.

    Args:
        path: the file.
        raw: x y z as delivered; 2D images: x y.
        affine: of `raw`, to the world of `prepared`.
        prepared: in [0, 1], 0 where nothing is kept.
        grid: affine of `prepared`.
    """
    from matplotlib.figure import Figure

    before = resample(raw.astype(np.float32), affine, prepared.shape, grid)
    before = (before / max(np.percentile(before, 99.5), 1e-12)).clip(0, 1)
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
    write_figure(path, figure, dpi=90)
