"""Figure of `utility`: scores against the real people that networks were trained on, with and without samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_medgen.images.png import write_figure

COLOURS = ("tab:blue", "tab:cyan", "tab:purple", "tab:green", "tab:olive")
APART = 1.03
"""Factor by which lines are moved along the axis of people, so that their intervals do not cover each other."""


def save_curves(path: Path, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """A PNG with a panel for each task: its leading score, with 95 % intervals, against the number of real people.

    Args:
        path: the file.
        tasks: name -> `scores`, `heads` and `curve` of a report.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(tasks), 3.9), layout="constrained")
    for axis, (name, task) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True):
        score, heads = next(iter(task["scores"])), task["heads"]
        synthetic = heads["synthetic"][score]
        axis.axhline(synthetic["value"], color="tab:orange", label=f"{task['equal']} samples alone")
        if synthetic["ci95"]:
            axis.axhspan(*synthetic["ci95"], color="tab:orange", alpha=0.12, linewidth=0)
        axis.axhline(heads["constant"][score]["value"], color="black", linewidth=0.8, linestyle=":", label="constant")
        points = [(point["people"], point["real"][score]) for point in task["curve"]]
        _line(axis, points, "real people alone", "black", 0)
        for k, colour in zip(range(len(task["curve"][0]["added"])), COLOURS, strict=False):
            points = [(point["people"], point["added"][k]["scores"][score]) for point in task["curve"]]
            label = f"with {task['curve'][0]['added'][k]['samples']} samples"
            _line(axis, points, label, colour, k + 1)
        axis.set_xscale("log")
        people = list(dict.fromkeys(point["people"] for point in task["curve"]))
        axis.set_xticks(people, [str(num) for num in people], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("real training people")
        axis.set_ylabel(f"{score} of {name}, unseen people")
        axis.legend(fontsize=7)
    write_figure(path, figure)


def _line(axis: Any, points: list[tuple[int, Mapping[str, Any]]], label: str, colour: str, number: int) -> None:
    """Values with intervals against the number of people."""
    at = [people * APART**number for people, _ in points]
    values = [row["value"] for _, row in points]
    axis.plot(at, values, "o-", color=colour, markersize=4, label=label)
    for x, (_, row) in zip(at, points, strict=True):
        if row["ci95"]:
            axis.plot([x, x], row["ci95"], color=colour, linewidth=1.2, alpha=0.6)
