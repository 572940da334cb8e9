"""Plots of guidance: images guided to either end of a label, and the derivatives that guide them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_medgen.images.png import write_figure

if TYPE_CHECKING:
    from torch import Tensor

NUM_WHOLE = 1
"""Maps whose whole images are shown."""
NUM_CROPS = 5
"""Maps whose nodules are shown."""


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of log p(label | x_t) at several times, of a low and a high value of the label.

    Attributes:
        name: of the label.
        ends: its two values.
        times: of the noise.
        seen: of each time what the classifier sees, *k in [-1, 1].
        in_image: of each time and, within it, each value, the derivative in that, *k.
        in_latent: the same in the latent, *z, summed over its channels.
    """

    name: str
    ends: tuple[float, float]
    times: Sequence[float]
    seen: Sequence[Tensor]
    in_image: Sequence[Tensor]
    in_latent: Sequence[Tensor]


def save_pairs(path: Path, columns: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """A PNG with a column for each entry, and what the last two differ by.

    Args:
        path: the file.
        columns: title -> images n 1 *s and what is around their nodules, n 1 *k, all in [-1, 1].
    """
    names = list(columns)
    num = len(columns[names[0]][0])
    rows = [(0, i) for i in range(min(NUM_WHOLE, num))] + [(1, i) for i in range(min(NUM_CROPS, num))]
    figure, axes = _grid(len(rows), len(names) + 1)
    pictures = [[_plane(columns[name][part][image, 0]) for name in names] for part, image in rows]
    changes = [shown[-1] - shown[-2] for shown in pictures]
    largest = max(float(np.abs(change).max()) for change in changes) or 1.0
    for shown, change, line in zip(pictures, changes, axes, strict=True):
        for axis, pixels in zip(line, shown, strict=False):
            axis.imshow(pixels, cmap="gray", vmin=-1, vmax=1)
        _signed(line[-1], change, largest)
    last = f"difference, red and\nblue: {largest / 2:.2g} of the range"
    for axis, title in zip(axes[0], [*names, last], strict=True):
        axis.set_title(title, color="white", fontsize=9)
    write_figure(path, figure)


def save_derivatives(path: Path, shown: Derivatives) -> None:
    """A PNG with a row for each time: what the classifier sees, and the derivatives; red is more, blue is less."""
    figure, axes = _grid(len(shown.times), 5)
    for i, (time, line) in enumerate(zip(shown.times, axes, strict=True)):
        line[0].imshow(_plane(shown.seen[i]), cmap="gray", vmin=-1, vmax=1)
        line[0].set_ylabel(f"t = {time:g}", color="white", fontsize=9)
        for j, of in enumerate((shown.in_image, shown.in_latent)):
            pair = [_plane(part) for part in of[2 * i : 2 * i + 2]]
            largest = max(float(np.abs(pixels).max()) for pixels in pair)
            for axis, pixels in zip(line[1 + 2 * j : 3 + 2 * j], pair, strict=True):
                _signed(axis, pixels, largest or 1.0)
    titles = [f"to {shown.name} {value:g}" for value in shown.ends]
    heads = ["seen", *(f"in the image,\n{t}" for t in titles), *(f"in the latent,\n{t}" for t in titles)]
    for axis, title in zip(axes[0], heads, strict=True):
        axis.set_title(title, color="white", fontsize=9)
    write_figure(path, figure)


def _grid(rows: int, columns: int) -> tuple[Any, np.ndarray]:
    """A dark figure with axes for so many pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.7 * columns, 1.75 * rows + 0.4), facecolor="black", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _plane(image: Tensor) -> np.ndarray:
    """Rows columns of an image x y, or of the middle axial slice of a volume x y z."""
    pixels = image.float().numpy()
    return (pixels if pixels.ndim == 2 else pixels[..., pixels.shape[2] // 2]).T


def _signed(axis: Any, pixels: np.ndarray, largest: float) -> None:
    """Pixels around 0 as blue to red, white at 0."""
    axis.imshow(pixels, cmap="seismic", vmin=-largest, vmax=largest)
