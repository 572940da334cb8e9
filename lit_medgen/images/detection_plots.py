"""Plots of `detect`: areas under the ROC curve of each set, and the surprises that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_medgen.images.png import write_figure

STYLES = {
    "model_z": ("model", "tab:blue", "o", "full"),
    "model_abs_z": ("model, untypical", "tab:blue", "o", "none"),
    "beyond_png_z": ("model less PNG", "tab:purple", "D", "full"),
    "beyond_png_abs_z": ("model less PNG, untypical", "tab:purple", "D", "none"),
    "histogram_z": ("histogram", "tab:orange", "s", "full"),
    "histogram_abs_z": ("histogram, untypical", "tab:orange", "s", "none"),
    "png_z": ("PNG", "tab:green", "^", "full"),
    "png_abs_z": ("PNG, untypical", "tab:green", "^", "none"),
}
"""Score -> its label, colour, marker, and whether that is filled."""
NUM_BINS = 40


def save_areas(path: Path, detection: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """A PNG with a row for each set: the AUC of each score with its 95 % interval.

    Args:
        path: the file.
        detection: set -> score -> `auc` and `ci95`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1 + 0.6 * len(detection)), layout="constrained")
    axis = figure.subplots()
    for row, of in enumerate(detection.values()):
        styles = {score: style for score, style in STYLES.items() if score in of}
        for k, (score, (label, colour, marker, fill)) in enumerate(styles.items()):
            at, (low, high) = row + (k - (len(styles) - 1) / 2) * 0.8 / len(styles), of[score]["ci95"]
            axis.plot([low, high], [at, at], color=colour, linewidth=1.5, alpha=0.6)
            style: dict[str, Any] = {"color": colour, "fillstyle": fill, "markersize": 5, "linestyle": "none"}
            axis.plot(of[score]["auc"], at, marker=marker, label=label if row == 0 else None, **style)
        if row:
            axis.axhline(row - 0.5, color="lightgray", linewidth=0.6)
    axis.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(detection)), list(detection))
    axis.set_ylim(len(detection) - 0.5, -0.5)
    axis.set_xlim(-0.03, 1.03)
    axis.set_xlabel("area under the ROC curve, with 95 % interval over people; 0.5: as test people")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    write_figure(path, figure)


def save_surprises(path: Path, surprises: Mapping[str, np.ndarray], reference: str) -> None:
    """A PNG with a panel for each set: the histogram of its z-scores above that of the test people, in grey.

    Args:
        path: the file.
        surprises: set -> z-score of each image.
        reference: the name of the set that all are compared with.
    """
    from matplotlib.figure import Figure

    inside = surprises[reference]
    others = {name: values for name, values in surprises.items() if name != reference} or {reference: inside}
    columns = min(4, len(others))
    rows = -(-len(others) // columns)
    figure = Figure(figsize=(2.8 * columns, 1.9 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, values) in zip(axes, others.items(), strict=False):
        low, high = (float(function([*inside, *values])) for function in (min, max))
        bins = np.linspace(low, high if high > low else low + 1, NUM_BINS + 1).tolist()
        axis.hist(inside, bins, density=True, color="gray", alpha=0.6)
        axis.hist(values, bins, density=True, color="tab:red", alpha=0.6)
        axis.set_title(name, fontsize=9)
        axis.set_yticks([])
        axis.tick_params(labelsize=7)
    for axis in axes[len(others) :]:
        axis.axis("off")
    figure.supxlabel("z-score of the model (gray: test people)", fontsize=9)
    write_figure(path, figure)
