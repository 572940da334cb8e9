"""Figures of an audit: samples beside the training images most like them, and how like they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lit_medgen.images.grids import columns_of
from lit_medgen.images.png import write_figure

if TYPE_CHECKING:
    from torch import Tensor

NUM_BINS = 40
TITLES = ("sample", "nearest training image", "difference")


class Pair(NamedTuple):
    """A sample and the training image most like it."""

    sample: Tensor
    """1 c *s in [-1, 1]."""
    nearest: Tensor
    """1 c *s in [-1, 1]."""
    likeness: Mapping[str, float]
    """Representation -> likeness of the sample to its nearest training image there."""


def save_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """A PNG with a column for each pair: the sample, the training image, and their difference, red where it is more."""
    from matplotlib.figure import Figure

    shown = [[columns_of(image)[0] for image in (pair.sample, pair.nearest)] for pair in pairs]
    height, width = shown[0][0].shape
    side = 1.7
    figure = Figure(
        figsize=(side * len(pairs) + 0.3, side * 3 * height / width + 0.9), facecolor="black", layout="constrained"
    )
    axes = figure.subplots(3, len(pairs), squeeze=False)
    for column, (pair, (sample, nearest)) in zip(axes.T, zip(pairs, shown, strict=True), strict=True):
        for axis, image in zip(column, (sample, nearest), strict=False):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
        column[2].imshow(sample - nearest, cmap="RdBu_r", vmin=-0.5, vmax=0.5, interpolation="bicubic")
        column[0].set_title("\n".join(f"{name} {value:.3f}" for name, value in pair.likeness.items()), **_text(8))
        for axis in column:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, title in zip(axes[:, 0], TITLES, strict=True):
        axis.set_ylabel(title, **_text(9))
    write_figure(path, figure)


def _text(size: int) -> dict[str, Any]:
    return {"color": "white", "fontsize": size}


def save_likeness(path: Path, report: Mapping[str, Any]) -> None:
    """A PNG with a panel for each representation: histograms of the likeness to the nearest training image."""
    from matplotlib.figure import Figure

    copies, likeness = report["copies"], report["likeness"]
    figure = Figure(figsize=(4 * len(copies), 2.6), layout="constrained")
    axes = figure.subplots(1, len(copies), squeeze=False)[0]
    for axis, (name, row) in zip(axes, copies.items(), strict=True):
        both = [likeness[kind][name] for kind in ("unseen", "samples")]
        bins = np.histogram_bin_edges(np.concatenate(both), NUM_BINS).tolist()
        axis.hist(both[0], bins, density=True, color="gray", alpha=0.6, label="unseen people")
        axis.hist(both[1], bins, density=True, color="tab:red", alpha=0.6, label="samples")
        axis.axvline(row["threshold"], color="black", linewidth=1, linestyle=":", label="threshold")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("likeness to the nearest training image", fontsize=8)
        axis.set_yticks([])
        axis.tick_params(labelsize=7)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    write_figure(path, figure)
