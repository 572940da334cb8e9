"""Plots of a variational bound: its terms against steps, its noise schedule, an image on its way to noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_medgen.images.grids import mosaic
from lit_medgen.images.png import write_figure

if TYPE_CHECKING:
    from torch import Tensor

LOG_FROM = 3.0
"""A term whose largest value is so many times its least is shown on a logarithmic axis."""


def save_bound(path: Path, rows: Sequence[Sequence[float]], names: Sequence[str], num: int) -> None:
    """A PNG of each term of the bound and of their sum against steps: nats per image, and bits per dimension.

    Args:
        path: the file.
        rows: of each validation its step, and the terms in bits per dimension.
        names: of the terms.
        num: values of an image.
    """
    from matplotlib.figure import Figure

    step, *terms = np.asarray(rows, dtype=float).T
    panels = [("bound", np.sum(terms, axis=0)), *zip(names, terms, strict=True)]
    nats = num * math.log(2)
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axis, (name, bits) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axis.plot(step, bits * nats, "o-", color="tab:blue", markersize=3)
        if bits.min() > 0 and bits.max() > LOG_FROM * bits.min():
            axis.set_yscale("log")
        axis.set_title(f"{name}: {bits[-1]:.3g} bits per dimension at last", fontsize=9)
        axis.set_xlabel("step")
        axis.set_ylabel("nats per image, unseen people")
        other = axis.secondary_yaxis("right", functions=(lambda y: y / nats, lambda y: y * nats))
        other.set_ylabel("bits per dimension")
    write_figure(path, figure)


def save_schedule(path: Path, gamma: np.ndarray) -> None:
    """A PNG of a noise schedule: gamma = -log SNR at n even times in [0, 1], beside the line between its ends."""
    from matplotlib.figure import Figure

    t = np.linspace(0, 1, len(gamma))
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(t, gamma, color="tab:blue", label="schedule")
    axis.plot(t[[0, -1]], gamma[[0, -1]], color="black", linewidth=0.8, linestyle=":", label="line between its ends")
    axis.set_xlabel("time t (0: image, 1: noise)")
    axis.set_ylabel("gamma = -log SNR")
    axis.legend(fontsize=7)
    write_figure(path, figure)


def save_noising(path: Path, rows: Mapping[str, Tensor], times: Sequence[float], colour: bool = False) -> None:
    """A PNG of labelled rows of images (n c *s in [-1, 1]), whose columns are times."""
    from matplotlib.figure import Figure

    blocks = {name: mosaic(images, colour) for name, images in rows.items()}
    heights = [block.shape[0] / block.shape[1] for block in blocks.values()]
    figure = Figure(figsize=(10, 10 * sum(heights) + 0.4 * len(blocks)), facecolor="black", layout="constrained")
    axes = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, block) in zip(axes, blocks.items(), strict=True):
        axis.imshow(block, cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
        width = block.shape[1] / len(times)
        axis.set_xticks([width * (k + 0.5) - 0.5 for k in range(len(times))], [f"t = {t:.2g}" for t in times])
        axis.tick_params(colors="white", length=0, labelsize=7)
        axis.set_yticks([])
        axis.set_title(name, color="white", fontsize=10, loc="left")
    write_figure(path, figure)
