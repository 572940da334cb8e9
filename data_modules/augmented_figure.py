"""A figure of one image as training sees it: as it is, and augmented several times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from data_modules.augmenter import Augmenter
from data_modules.items import Items
from data_modules.records import Record
from lit_medgen.batch import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, ROWS = 3, 3


def plot_augmented(items: Items, augmenter: Augmenter, record: Record, colour: bool = False) -> Figure:
    """The middle slice of an item in the first panel, and in eight others as it is augmented at eight positions.

    Of sets of slices the middle one of a set is shown; label maps by the outlines of their classes. Channels stand
    below each other in each panel, or are red, green and blue (`colour`).
    """
    from matplotlib.figure import Figure

    selection = items.view.draw(items.grid, record, np.random.default_rng(0))
    height = 1 if colour else len(items.store.channels)
    figure = Figure(figsize=(3 * COLUMNS, (3 * height + 0.2) * ROWS), facecolor="black", layout="constrained")
    for number, axis in enumerate(figure.subplots(ROWS, COLUMNS).flat):
        drawn = augmenter.at(number) if number else None
        channels, labels = _planes(items, items.batch(record, selection, drawn=drawn))
        shown = np.stack([(each + 1) / 2 for each in channels], axis=-1) if colour else np.vstack(channels)
        axis.imshow(shown.clip(0, 1) if colour else shown, cmap="gray", vmin=-1, vmax=1)
        if labels is not None and labels.min() < labels.max():
            edges = np.arange(labels.min(), labels.max()) + 0.5
            axis.contour(np.vstack([labels] * height), edges, colors="orange", linewidths=0.8)
        axis.set_title(f"augmented, {number}" if number else "as it is", color="white", fontsize=9, loc="left")
        axis.axis("off")
    return figure


def _planes(items: Items, batch: Batch) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Each channel of the image, and the label map, of an item in one plane, rows from the top."""
    label_map, index = batch.condition.label_map, batch.condition.slice_index
    parts = [*batch.image[0].numpy(), *([] if label_map is None else label_map[0].numpy())]
    if parts[0].ndim == 3:
        is_set = items.view.reads_slices and index is not None
        axis = 0 if is_set else items.grid.stacked
        middle = int((index[0] >= 0).sum()) // 2 if is_set and index is not None else parts[0].shape[axis] // 2
        parts = [np.take(each, middle, axis).T[::-1] for each in parts]
    else:
        parts = [each.T for each in parts]
    num = batch.image.shape[1]
    return parts[:num], None if label_map is None else parts[num]
