"""What comes of a sweep: scores of its runs with their intervals, a table, curves, and a Pareto front of two scores."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from lit_medgen.errors import InputError
from lit_medgen.files import as_csv, write_atomically

Goal = Literal["minimize", "maximize"]
FILES = ("table.csv", "plot.png", "pareto.png")
"""What is written when a sweep ends."""
FACTS = ("run", "scores", "ci95")
"""Of a run that has ended: all but these are its parameters."""


@dataclass(frozen=True)
class Chosen:
    """The scores that a sweep is looked at by.

    Attributes:
        file: the sweep file.
        metric: as in that file.
        plot: other scores that are plotted.
        pareto: two scores that are set against each other -> what is best; empty: none are.
    """

    file: Path
    metric: Mapping[str, str]
    plot: Sequence[str] = ()
    pareto: Mapping[str, Goal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """InputError if not two scores are set against each other."""
        if self.pareto and (len(self.pareto) != 2 or not set(self.pareto.values()) <= {"minimize", "maximize"}):
            raise InputError(
                f"--pareto is {json.dumps(dict(self.pareto))}; give two scores, each with minimize or maximize, e.g. "
                '\'{"metrics.frechet_axial.value": "minimize", "agreement.ventricles_ml_r.value": "maximize"}\'.'
            )

    @property
    def names(self) -> dict[str, str]:
        """Score -> where it was named."""
        names = {name: "--pareto names" for name in self.pareto} | {name: "--plot names" for name in self.plot}
        metric = self.metric.get("name")
        return ({metric: f"{self.file}: metric.name is"} if metric else {}) | names

    def refuse_unknown(self, row: Mapping[str, Any]) -> None:
        """InputError if a run that has ended lacks one of the scores: no other will have it."""
        for name, where in self.names.items():
            if name not in row["scores"]:
                near = get_close_matches(name, row["scores"], 3, 0.5) or list(row["scores"])
                raise InputError(
                    f"{where} {name!r}, but {row['run']} has no such score; the nearest: {', '.join(near)}. The run is "
                    "kept; mend that and go on with --resume."
                )


def scores(run_folder: Path) -> dict[str, dict[str, Any]]:
    """What a run folder or report says at its end.

    `scores` holds name -> value, as W&B would have it, and `ci95` name -> interval of those that have one.
    """
    by_name: dict[str, float] = {}
    if (run_folder / "metrics.csv").is_file():
        with (run_folder / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                by_name |= {name: float(value) for name, value in row.items() if value}
    from lit_medgen.callbacks.report import intervals, logged  # heavy, and not needed to refuse a file

    ranges: dict[str, list[float]] = {}
    for path in run_folder.glob("**/report.json"):
        report = json.loads(path.read_text())
        by_name |= logged(report)
        ranges |= intervals(report)
    return {"scores": by_name, "ci95": ranges}


def write_results(folder: Path, rows: Sequence[Mapping[str, Any]], chosen: Chosen) -> None:
    """`FILES`, of runs that have ended, and the best of them on the screen."""
    _write_table(folder / "table.csv", rows, chosen)
    if not rows or not chosen.names:
        return
    _plot(folder / "plot.png", rows, list(chosen.names))
    if chosen.pareto:
        _plot_front(folder / "pareto.png", rows, chosen.pareto)
    if chosen.metric.get("name"):
        _print_best(rows, chosen.metric)


def pareto_front(points: Sequence[Sequence[float]], goals: Sequence[Goal]) -> list[int]:
    """Indices of the points (n d) that no other beats in one score without losing in another, by the first score.

    Points with NaN are left out.
    """
    signs = [1 if goal == "minimize" else -1 for goal in goals]
    costs = {
        i: tuple(sign * value for sign, value in zip(signs, point, strict=True))
        for i, point in enumerate(points)
        if not any(map(math.isnan, point))
    }

    def beaten(one: tuple[float, ...]) -> bool:
        return any(other != one and all(a <= b for a, b in zip(other, one, strict=True)) for other in costs.values())

    return sorted((i for i, cost in costs.items() if not beaten(cost)), key=lambda i: tuple(points[i]))


def _write_table(path: Path, rows: Iterable[Mapping[str, Any]], chosen: Chosen) -> None:
    """A row for each run: parameters, the intervals of what is plotted, scores."""
    flat = []
    for row in rows:
        ranges = {
            f"{name}.{end}": row["ci95"][name][k]
            for name in chosen.names
            if name in row.get("ci95", {})
            for k, end in enumerate(("low", "high"))
        }
        flat.append({"run": row["run"], **_settings(row), **ranges, **row["scores"]})
    write_atomically(path, as_csv(flat, list(dict.fromkeys(name for row in flat for name in row))))


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run."""
    return {name: value for name, value in row.items() if name not in FACTS}


def _print_best(rows: Sequence[Mapping[str, Any]], metric: Mapping[str, str]) -> None:
    name = metric["name"]
    scored = [row for row in rows if name in row["scores"]]
    for row in sorted(scored, key=lambda row: row["scores"][name], reverse=metric.get("goal") == "maximize"):
        settings = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in _settings(row).items())
        print(f"{row['scores'][name]:.4g}  {row['run']}: {settings}")


def _varied(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Parameter -> its values in all runs, of those that vary; the first where none does."""
    names = list(_settings(rows[0]))
    varied = [name for name in names if len({json.dumps(row[name]) for row in rows}) > 1]
    return {name: [row[name] for row in rows] for name in varied or names[:1]}


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[list[float]]]:
    """A score of all runs, and its intervals; NaN where there is none."""
    values = [row["scores"].get(name, math.nan) for row in rows]
    return values, [row.get("ci95", {}).get(name, [math.nan, math.nan]) for row in rows]


def _plot(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Every score against every parameter that varies."""
    from lit_medgen.images.sweep_plots import save_sweep  # numpy and pillow, which a refused sweep does not need

    save_sweep(path, _varied(rows), {name: _values(rows, name) for name in names})


def _plot_front(path: Path, rows: Sequence[Mapping[str, Any]], goals: Mapping[str, Goal]) -> None:
    """Two scores against each other, a point for each run, with the values of the parameters that vary."""
    from lit_medgen.images.sweep_plots import save_front  # as above

    x, y = (_values(rows, name) for name in goals)
    varied = _varied(rows)
    texts = [", ".join(str(values[i]) for values in varied.values()) for i in range(len(rows))]
    front = pareto_front(list(zip(x[0], y[0], strict=True)), list(goals.values()))
    what = ", ".join(name.rpartition(".")[2] for name in varied)
    save_front(path, dict(zip(goals, (x, y), strict=True)), list(goals.values()), texts, front, what)
