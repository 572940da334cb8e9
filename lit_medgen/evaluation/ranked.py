"""The scores of several models side by side, and which model is best by them as far as intervals say.

The rule: by each score the models are put in order of `shortfall`, which is the value itself where the lowest is best,
its negative where the highest is, and its distance from the value of real images where the nearest is. The first model
is *best* if its interval meets the interval of no other; else those that it meets are *not told apart* from it, and no
model is best. A distance from real images lies between the smallest and the largest distance of the interval's values.

Models are ranked among those that were asked the same: tested on the same people (a fold), and making people of their
own or (reconstructions, images of label maps) images whose targets are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from lit_medgen.metrics.base import Best

RELATIVE_TOLERANCE = 1e-3
"""By which values of floors and nulls may differ that are the same: other machines round in another way."""
REAL, NULL = "real vs real", "null: "
"""Name of the line of real images, and the beginning of those of nulls."""
COSTS = {
    "network evaluations": "network_evaluations",
    "parameters": "parameters",
    "seconds per image": "seconds_per_image",
}
"""What an image costs -> its key in a report."""

Kind = Literal["model", "real", "null"]
Group = TypeVar("Group")


class Row(NamedTuple):
    """A score of a model."""

    value: float
    interval: tuple[float, float]
    best: Best
    real: float | None
    """The same score of real images; None where there is none."""
    features: str
    """What the score is computed from."""


class Cell(NamedTuple):
    """What a table says in one place."""

    value: float
    interval: tuple[float, float] | None = None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        name: of the model, or what it is else.
        kind: a model, real images in the place of samples, or a null.
        cells: score -> what is said of it.
        costs: what an image costs -> how much, as far as it is known.
    """

    name: str
    kind: Kind
    cells: Mapping[str, Cell]
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """The scores of several models.

    Attributes:
        columns: score -> which value is best.
        lines: the models, then real images, then the nulls that all share.
        remarks: in a sentence for each score, which model is best, or which are not told apart.
    """

    columns: Mapping[str, Best]
    lines: Sequence[Line]
    remarks: Sequence[str]


def rows_of(report: Mapping[str, Any]) -> dict[str, Row]:
    """Score -> its row, of all scores of a report that are of samples and were measured."""
    parts = [("", "metrics", "real_vs_real"), (", of pairs", "pairs", "real_vs_real"), ("", "agreement", "real")]
    return {
        f"{name}{ending}": Row(row["value"], _interval(row), row["best"], _number(row[reference]), row["features"])
        for ending, part, reference in parts
        for name, row in report.get(part, {}).items()
        if _number(row["value"]) is not None
    }


def is_paired(report: Mapping[str, Any]) -> bool:
    """Whether samples were made from what shows how they should be, and are not people of the model's own."""
    return bool(report.get("pairs"))


def _number(value: float | None) -> float | None:
    """The value; None for NaN, which is none."""
    return None if value is None or math.isnan(value) else value


def _interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of a score; without ends where the jackknife has none, so that it meets all others."""
    low, high = row["ci95"]
    return (low, high) if low <= row["value"] <= high else (-math.inf, math.inf)


def shortfall(row: Row) -> tuple[float, float, float]:
    """How far a score is from the best one, and the interval of that; only differences mean something."""
    low, high = row.interval
    if row.best == "lower":
        return row.value, low, high
    if row.best == "higher":
        return -row.value, -high, -low
    assert row.real is not None
    apart = abs(low - row.real), abs(high - row.real)
    return abs(row.value - row.real), 0.0 if low <= row.real <= high else min(apart), max(apart)


def best_of(rows: Mapping[str, Row]) -> tuple[str, list[str]]:
    """The model that comes first by a score, and those that are not told apart from it."""
    apart = {name: shortfall(row) for name, row in rows.items()}
    first = min(apart, key=lambda name: apart[name][0])
    _, low, high = apart[first]
    return first, [name for name, (_, start, end) in apart.items() if name != first and start <= high and end >= low]


def table_of(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table of models (name -> report); models that are tested on other people are ranked among themselves."""
    rows = {name: rows_of(report) for name, report in reports.items()}
    columns = {score: row.best for of_model in rows.values() for score, row in of_model.items()}
    folds, rivals = _grouped(reports, _fold), _grouped(reports, lambda report: (_fold(report), is_paired(report)))
    best: set[tuple[str, str]] = set()
    remarks = []
    for (fold, _), names in rivals.items():
        for score in columns:
            candidates = {name: rows[name][score] for name in names if score in rows[name]}
            if remark := _remark(score, candidates, best):
                remarks.append(remark + (f" (fold {fold})" if len(folds) > 1 else ""))
    lines = [Line(name, "model", _cells(name, rows[name], best), _costs(report)) for name, report in reports.items()]
    for fold, names in folds.items():
        ending = f", fold {fold}" if len(folds) > 1 else ""
        lines += _references(ending, {name: reports[name] for name in names}, {name: rows[name] for name in names})
    return Table(columns, lines, remarks)


def _grouped(
    reports: Mapping[str, Mapping[str, Any]], group: Callable[[Mapping[str, Any]], Group]
) -> dict[Group, list[str]]:
    """Group -> the names of its reports, in order."""
    groups: dict[Group, list[str]] = {}
    for name, report in reports.items():
        groups.setdefault(group(report), []).append(name)
    return groups


def _fold(report: Mapping[str, Any]) -> str:
    fold: str = report["reference"]["fold"]
    return fold


def _remark(score: str, rows: Mapping[str, Row], best: set[tuple[str, str]]) -> str:
    """What is said of a score that several models have; its best model, if there is one, joins `best`."""
    known = {name: row for name, row in rows.items() if row.best != "real" or row.real is not None}
    if len(known) < 2:
        return ""
    if len({(row.features, row.best) for row in known.values()}) > 1:
        return f"{score}: not ranked, computed from different things"
    first, others = best_of(known)
    if others:
        those = "any other" if len(others) > 1 and len(others) == len(known) - 1 else ", ".join(others)
        return f"{score}: {first} first, not told apart from {those}"
    best.add((first, score))
    return f"{score}: {first} best"


def _cells(name: str, rows: Mapping[str, Row], best: set[tuple[str, str]]) -> dict[str, Cell]:
    return {score: Cell(row.value, row.interval, (name, score) in best) for score, row in rows.items()}


def _costs(report: Mapping[str, Any]) -> dict[str, float]:
    return {cost: report[key] for cost, key in COSTS.items() if report.get(key) is not None}


def _references(
    ending: str, reports: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Mapping[str, Row]]
) -> list[Line]:
    """The lines of real images and of nulls, with what all models that have a score share."""
    scores = dict.fromkeys(score for of_model in rows.values() for score in of_model)
    of_real = {score: [some[score].real for some in rows.values() if score in some] for score in scores}
    lines = [Line(f"{REAL}{ending}", "real", _shared(of_real), {})]
    first, *others = (report["nulls"] for report in reports.values())
    for null in first:
        if all(null in nulls for nulls in others):
            values = {
                score: [report["nulls"][null].get(score) for report in reports.values() if score in report["metrics"]]
                for score in scores
            }
            lines.append(Line(f"{NULL}{null}{ending}", "null", _shared(values), {}))
    return [line for line in lines if line.cells]


def _shared(values: Mapping[str, Sequence[float | None]]) -> dict[str, Cell]:
    """Score -> the value that all have."""
    cells = {}
    for score, found in values.items():
        known = [value for value in found if value is not None]
        if known and len(known) == len(found) and all(_same(value, known[0]) for value in known):
            cells[score] = Cell(known[0])
    return cells


def _same(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-9)
