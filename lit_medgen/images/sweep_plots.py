"""Plots of sweeps: scores against parameters, and one score against another with their Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_medgen.images.png import write_figure

Values = tuple[Sequence[float], Sequence[Sequence[float]]]
"""A score of every run, and its interval; NaN where there is none."""
ARROWS = {"minimize": "lower is better", "maximize": "higher is better"}


def save_sweep(path: Path, varied: Mapping[str, Sequence[Any]], scores: Mapping[str, Values]) -> None:
    """A PNG with a panel for every score and parameter; runs are joined to a curve where one parameter alone varies.

    Args:
        path: the file.
        varied: parameter -> its value in every run.
        scores: name -> its values.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4 * len(varied), 5), 2.8 * len(scores) + 0.4), layout="constrained")
    panels = figure.subplots(len(scores), len(varied), squeeze=False, sharey="row", sharex="col")
    for row, (name, (values, intervals)) in zip(panels, scores.items(), strict=True):
        row[0].set_ylabel(_short(name))
        for axis, settings in zip(row, varied.values(), strict=True):
            numbers = all(isinstance(value, int | float) for value in settings)
            at = np.array(settings if numbers else [str(value) for value in settings])
            order = np.argsort(at, kind="stable") if numbers else np.arange(len(at))
            _interval_bars(axis, at, np.array(values, float), np.array(intervals, float), order)
            axis.plot(at[order], np.array(values, float)[order], "o-" if numbers and len(varied) == 1 else "o")
            if numbers and min(settings) > 0 and max(settings) > 10 * min(settings):
                axis.set_xscale("log")
    for axis, parameter in zip(panels[-1], varied, strict=True):
        axis.set_xlabel(parameter.rpartition(".")[2])
    write_figure(path, figure)


def save_front(
    path: Path,
    scores: Mapping[str, Values],
    goals: Sequence[str],
    texts: Sequence[str],
    front: Sequence[int],
    what: str,
) -> None:
    """A PNG of two scores against each other, a point for each run, the points of the Pareto front joined.

    Args:
        path: the file.
        scores: the two scores' names -> their values.
        goals: of each, minimize or maximize.
        texts: what stands at each point.
        front: indices of the runs on the front, along the first score.
        what: what the texts are of.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    (x, of_x), (y, of_y) = ((np.array(values, float), np.array(part, float)) for values, part in scores.values())
    lengths = [np.abs(part - middle[:, None]).T for middle, part in ((x, of_x), (y, of_y))]
    axis.errorbar(x, y, lengths[1], lengths[0], fmt="none", ecolor="lightgray", elinewidth=1, zorder=0)
    axis.plot(x, y, "o", color="gray", label="runs, 95 % intervals")
    axis.plot(x[list(front)], y[list(front)], "o-", color="tab:blue", label="Pareto front")
    for text, at, height in zip(texts, x, y, strict=True):
        if np.isfinite([at, height]).all():
            axis.annotate(text, (at, height), (5, 5), textcoords="offset points", fontsize=8)
    labels = [f"{_short(name)} ({ARROWS[goal]})" for name, goal in zip(scores, goals, strict=True)]
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.legend(title=f"numbers: {what}", fontsize=8, title_fontsize=8)
    write_figure(path, figure)


def _interval_bars(axis: Any, at: np.ndarray, values: np.ndarray, intervals: np.ndarray, order: np.ndarray) -> None:
    """The interval of each value, as a bar."""
    lengths = np.abs(intervals - values[:, None]).T
    axis.errorbar(at[order], values[order], lengths[:, order], fmt="none", ecolor="tab:blue", alpha=0.4, capsize=2)


def _short(name: str) -> str:
    """The name of a score without what every score's begins and ends with."""
    return name.removeprefix("metrics.").removesuffix(".value")
