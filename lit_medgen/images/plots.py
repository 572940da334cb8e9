"""Plots: scores with floors and nulls, agreement, skill against noise, a map of samples among people, codes used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_medgen.images.png import write_figure


def save_scores(path: Path, report: Mapping[str, Any]) -> None:
    """A PNG with one row for each score: the value with its interval, the real-vs-real value, and the nulls."""
    from matplotlib.figure import Figure

    rows = report["metrics"]
    figure = Figure(figsize=(9, 0.55 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (name, row) in zip(axes, rows.items(), strict=True):
        low, high = row["ci95"]
        axis.plot([low, high], [0, 0], color="tab:blue", linewidth=3, alpha=0.5)
        axis.plot(row["value"], 0, "o", color="tab:blue", label="samples, 95 % interval")
        axis.plot(row["real_vs_real"], 0, "|", color="black", markersize=16, markeredgewidth=2, label="real vs real")
        for marker, (null, scores) in zip("x+1234", report["nulls"].items(), strict=False):
            axis.plot(scores[name], 0, marker, color="tab:red", label=f"null: {null}")
        # A null far away would leave no room for what matters.
        near = sorted([low, high, row["real_vs_real"], *(scores[name] for scores in report["nulls"].values())])
        if near[-1] > 20 * max(abs(high), abs(row["real_vs_real"]), 1e-12):
            axis.set_xscale("symlog", linthresh=max(abs(row["value"]), abs(row["real_vs_real"]), 1e-12))
        axis.set_yticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.tick_params(labelsize=6)
        for side in ("left", "right", "top"):
            axis.spines[side].set_visible(False)
    columns = 2 + len(report["nulls"])
    style = {"fontsize": 7, "columnspacing": 1.2, "handletextpad": 0.1, "frameon": False}
    axes[0].legend(ncols=columns, loc="lower center", bbox_to_anchor=(0.4, 1), **style)
    write_figure(path, figure)


def save_agreement(path: Path, panels: Sequence[Mapping[str, Any]]) -> None:
    """A PNG with a panel for each attribute: what was measured on images against what they were asked to show.

    Args:
        path: the file.
        panels: of each attribute the names of its axes `x` and `y`, `sets` (label -> requested values, measured values,
            and the line through them with its standard errors), and whether a perfect model lies on the `diagonal`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 4.4), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        colours = zip(("tab:blue", "gray"), "o^", (3, 2), panel["sets"].items(), strict=False)
        for colour, marker, order, (label, (requested, measured, (at, line, error))) in colours:
            axis.plot(requested, measured, marker, color=colour, markersize=4, alpha=0.7, zorder=order)
            axis.plot(at, line, color=colour, label=label, zorder=order)
            band = 1.96 * error
            axis.fill_between(at, line - band, line + band, color=colour, alpha=0.2, linewidth=0, zorder=order - 1)
        if panel["diagonal"]:
            axis.axline((at[0], at[0]), slope=1, color="black", linewidth=0.8, linestyle=":", label="as asked for")
        axis.set_xlabel(panel["x"])
        axis.set_ylabel(panel["y"])
        axis.legend(fontsize=7, loc="upper left")
    write_figure(path, figure)


def save_skill(path: Path, panels: Sequence[Mapping[str, Any]]) -> None:
    """A PNG with a panel for each label: the score of its predictions against the time of the noise.

    Args:
        path: the file.
        panels: of each label the name `y` of its score, the times `t`, and at each the `value` and its `interval` (NaN
            where there is none); `guess` is the score of a guess.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        low, high = np.asarray(panel["interval"], dtype=float).T
        axis.plot(panel["t"], panel["value"], "o-", color="tab:blue", markersize=4)
        axis.fill_between(panel["t"], low, high, color="tab:blue", alpha=0.2, linewidth=0, label="95 % interval")
        axis.axhline(panel["guess"], color="black", linewidth=0.8, linestyle=":", label="a guess")
        axis.set_xlabel("time t of the noise (0: image, 1: noise)")
        axis.set_ylabel(panel["y"])
        axis.legend(fontsize=7)
    write_figure(path, figure)


def save_usage(path: Path, counts: np.ndarray) -> None:
    """A PNG of how often each code of a codebook is used, sorted, on logarithmic axes."""
    from matplotlib.figure import Figure

    used = np.sort(counts)[::-1]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    axis.loglog(np.arange(1, len(used) + 1), np.where(used > 0, used, np.nan) / used.sum())
    axis.set_xlabel(f"code, by use; {np.count_nonzero(used)} of {len(used)} are used")
    axis.set_ylabel("share of positions")
    write_figure(path, figure)


def in_two_dimensions(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Points of each part (n d) in two dimensions (n 2), embedded together; equal points have one place.

    t-SNE (van der Maaten & Hinton 2008, "Visualizing Data using t-SNE"), with one seed and the leading two principal
    components to begin with.
    """
    from sklearn.manifold import TSNE

    every, where = np.unique(np.concatenate(parts), axis=0, return_inverse=True)
    perplexity = min(30.0, (len(every) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(every)[where.flatten()]
    return np.split(points, np.cumsum([len(part) for part in parts])[:-1])


def save_map(path: Path, features: Mapping[str, np.ndarray]) -> None:
    """A PNG of all images in two dimensions, as `in_two_dimensions` places them.

    Args:
        path: the file.
        features: name -> n d. Rows of "samples" and "nearest" belong together and are joined by a line.
    """
    from matplotlib.figure import Figure

    parts = dict(zip(features, in_two_dimensions(list(features.values())), strict=True))
    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = figure.subplots()
    for one, other in zip(parts["samples"], parts["nearest"], strict=True):
        axis.plot(*np.stack([one, other]).T, color="lightgray", linewidth=0.8, zorder=0)
    labels = {"samples": "samples", "nearest": "training people most like them", "unseen": "unseen people"}
    for (name, part), marker in zip(parts.items(), "o^s", strict=True):
        axis.plot(*part.T, marker, markersize=5, alpha=0.8, label=labels[name])
    axis.set_axis_off()
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False)
    write_figure(path, figure)


def save_control(path: Path, panels: Sequence[Mapping[str, Any]]) -> None:
    """A PNG with a panel for each attribute: what a judge says of images asked for its lowest and its highest value.

    Args:
        path: the file.
        panels: of each attribute its `name`, the two values `asked` for, `pairs` of judged values (one of each
            person), their `means` (value, low, high), what is said of `real` images labelled so (or None), and the
            judge's `skill` in words.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(panels), 4.2), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for pair in panel["pairs"]:
            axis.plot([0, 1], pair, "o-", color="lightgray", markersize=3, linewidth=0.8, zorder=1)
        means, low, high = np.array(panel["means"]).T
        bars = np.stack([means - low, high - means])
        axis.errorbar([0, 1], means, bars, fmt="o-", color="tab:blue", capsize=4, zorder=3, label="mean, 95 % interval")
        if panel["real"]:
            axis.plot([0, 1], panel["real"], "k_", markersize=22, zorder=2, label="real images labelled so")
        axis.set_xticks([0, 1], [f"{value:g}" for value in panel["asked"]])
        axis.set_xlim(-0.4, 1.4)
        axis.set_xlabel(f"{panel['name']} asked for")
        axis.set_ylabel(f"{panel['name']} judged, a line for each person")
        axis.set_title(panel["skill"], fontsize=8)
        axis.legend(fontsize=7)
    write_figure(path, figure)
