"""Figures of several models side by side: scores, samples, maps of samples among people, steps of a sample's making."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_medgen.images.plots import in_two_dimensions
from lit_medgen.images.png import write_figure

PANELS = 4
"""Panels in a row of a figure."""
NUM_IMAGES, NUM_VOLUMES = 6, 2
"""Images of each model in a grid, and volumes, of which each takes three planes."""
LEGEND = {"-": "real vs real", "*": "best: its interval meets no other"}
"""Style of a line or point -> what it stands for."""
MAX_NAME = 40
"""Characters of a name that a figure has room for."""
MAX_RATIO = 30.0
"""Between scores in a panel, above which the axis is logarithmic around 0."""


def save_compared(path: Path, panels: Sequence[Mapping[str, Any]]) -> None:
    """A PNG with a panel for each score: the models side by side with their intervals, real images as a line.

    Args:
        path: the file.
        panels: of each score a `title`, its `points`, model -> value, low and high end, value of real images (or NaN),
            and the models that are `best`.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels for name in panel["points"]))
    num_rows, colours = -(-len(panels) // PANELS), _colours(names)
    size = max(2.6, 0.4 * len(names) + 1.2)
    figure = Figure(figsize=(size * min(PANELS, len(panels)), 2.6 * num_rows + 0.6), layout="constrained")
    axes = figure.subplots(num_rows, min(PANELS, len(panels)), squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        _plot_scores(axis, panel["points"], panel["best"], names, colours)
        axis.set_title(_shown(panel["title"]), fontsize=min(9.0, 300 / len(panel["title"])))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    lines = [axes[0].plot([], [], style, color="black", label=label)[0] for style, label in LEGEND.items()]
    figure.legend(handles=lines, loc="outside upper right", ncols=len(lines), fontsize=8, frameon=False)
    write_figure(path, figure)


def _plot_scores(
    axis: Any,
    points: Mapping[str, tuple[float, ...]],
    best: Collection[str],
    names: Sequence[str],
    colours: Mapping[str, Any],
) -> None:
    """One panel: a model that lacks the score leaves its place empty."""
    for name, (value, low, high, real) in points.items():
        i = names.index(name)
        axis.plot([i - 0.5, i + 0.5], [real, real], color="black", linewidth=1)
        axis.plot([i, i], [low, high], color=colours[name], linewidth=3, alpha=0.5)
        axis.plot(i, value, "*" if name in best else "o", color=colours[name], markersize=11 if name in best else 5)
    shown = np.abs([row[k] for row in points.values() for k in (0, 3)])
    shown = np.where(np.isfinite(shown) & (shown > 0), shown, np.nan)
    near = np.nanmin(shown, initial=np.inf)
    if np.isfinite(near) and np.nanmax(shown) > MAX_RATIO * near:
        axis.set_yscale("symlog", linthresh=near)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_xticks(
        range(len(names)), [_shown(name) for name in names], rotation=45, ha="right", rotation_mode="anchor", fontsize=7
    )
    axis.tick_params(axis="y", labelsize=7)
    for side in ("right", "top"):
        axis.spines[side].set_visible(False)


def save_side_by_side(path: Path, models: Mapping[str, np.ndarray]) -> None:
    """A PNG with a column of images for each model: model -> n h w (colours: n h w 3), uint8, their planes stacked."""
    from matplotlib.figure import Figure

    columns = {name: images for name, images in models.items() if len(images)}
    height, width = next(iter(columns.values())).shape[1:3]
    num = NUM_VOLUMES if height > 2 * width else NUM_IMAGES
    blocks = {name: np.vstack(list(images[:num])) for name, images in columns.items()}
    tallest = max(len(block) for block in blocks.values())
    side = 1.35
    size = side * len(blocks), side * tallest / width + 0.35
    figure = Figure(figsize=size, facecolor="black")
    figure.set_layout_engine("constrained", w_pad=0.02, wspace=0.0)
    for axis, (name, block) in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks.items(), strict=True):
        padded = np.pad(block, ((0, tallest - len(block)), *[(0, 0)] * (block.ndim - 1)))
        axis.imshow(padded, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
        axis.set_title(_shown(name), color="white", fontsize=_font_size(name))
        axis.axis("off")
    write_figure(path, figure)


def save_maps(path: Path, spaces: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> None:
    """A PNG with a panel for each model: its samples and the training images most like them, in two dimensions.

    Args:
        path: the file.
        spaces: models whose points are embedded together, so that they share the places of real images: model ->
            "samples", "nearest" and "unseen" -> n d.
    """
    from matplotlib.figure import Figure

    panels = {name: points for space in spaces for name, points in _embedded(space).items()}
    limits = {
        name: edges for space in spaces for name, edges in _limits({name: panels[name] for name in space}).items()
    }
    num_columns = min(PANELS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(3.1 * num_columns, 3.2 * num_rows + 0.4), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    styles = {
        "unseen": ("s", "lightgray", "unseen people"),
        "nearest": ("^", "tab:orange", "training images most like them"),
        "samples": ("o", "tab:blue", "samples"),
    }
    for axis, (name, points) in zip(axes, panels.items(), strict=False):
        for kind, (marker, colour, label) in styles.items():
            axis.plot(*points[kind].T, marker, color=colour, markersize=3.5, alpha=0.8, label=label)
        axis.set_xlim(limits[name][0])
        axis.set_ylim(limits[name][1])
        axis.set_title(_shown(name), fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    write_figure(path, figure)


def _embedded(space: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """The same models with points in two dimensions."""
    keys = [(name, kind) for name, points in space.items() for kind in points]
    found = dict(zip(keys, in_two_dimensions([space[name][kind] for name, kind in keys]), strict=True))
    return {name: {kind: found[name, kind] for kind in points} for name, points in space.items()}


def _limits(space: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Model -> the ends of both axes (2 2), the same for all models, with a twentieth of the width to spare."""
    every = np.concatenate([part for points in space.values() for part in points.values()])
    low, high = every.min(0), every.max(0)
    spare = (high - low).clip(min=1e-6) / 20
    return dict.fromkeys(space, np.stack([low - spare, high + spare], axis=1))


def save_trajectories(path: Path, models: Mapping[str, np.ndarray]) -> None:
    """A PNG with a row for each model: one sample at k steps of its making, k h w (colours: k h w 3), uint8."""
    from matplotlib.figure import Figure

    num = max(len(frames) for frames in models.values())
    height, width, *colours = next(iter(models.values())).shape[1:]
    side = 1.3
    figure = Figure(
        figsize=(side * num + 0.5, len(models) * (side * height / width + 0.3)), facecolor="black", layout="constrained"
    )
    axes = figure.subplots(len(models), 1, squeeze=False)[:, 0]
    for axis, (name, frames) in zip(axes, models.items(), strict=True):
        empty = np.zeros((height, width * (num - len(frames)), *colours), frames.dtype)
        axis.imshow(np.hstack([empty, *frames]), cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
        axis.set_title(_shown(name), color="white", fontsize=10, loc="left")
        axis.axis("off")
    write_figure(path, figure)


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Model -> its colour, the same in all panels."""
    return {name: f"C{i % 10}" for i, name in enumerate(names)}


def _shown(name: str) -> str:
    """A name as figures have it: `$` begins no formula, and of a long one the middle is left out."""
    half = MAX_NAME // 2
    short = name if len(name) <= MAX_NAME else f"{name[: half - 1]}…{name[-half:]}"
    return short.replace("$", r"\$")


def _font_size(name: str) -> float:
    """Small enough for the name to fit above a column."""
    return float(np.clip(120 / max(len(name), 1), 5, 10))
