"""Whether images show what was asked for: requested attributes against what a rule measures on the images.

`RULES` lists the attributes, by their names, for which such a rule exists; a rule is added by one entry. The same
scores of real images, whose attributes are known, say what the rule itself reaches.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Images, TrainingData
from lit_medgen.evaluation.scores import row_of
from lit_medgen.metrics import AgreementMetric, Correlation, MeanAbsoluteError, Slope
from lit_medgen.metrics.anatomy import brain_volume, ventricle_volume
from lit_medgen.metrics.base import images_of_people
from lit_medgen.metrics.known import Known, of_each

NUM_ON_LINE = 50
MIN_POINTS = 3
"""Fewer people have a line, but no error."""
UNITS_ML = {"ml": 1.0, "cm3": 1.0, "mm3": 1e-3, "l": 1e3}
"""Unit at the end of an attribute's name -> mL."""
SIZE = r"(_(csf|vol|volume|size|total|normali[sz]ed|raw|labelmap))*(_(?P<unit>ml|cm3|mm3|l))?"
"""What may follow the name of a part of the brain in that of an attribute which is its volume."""


@dataclass(frozen=True)
class Rule:
    """How an attribute is measured on images of brains.

    Attributes:
        names: a regular expression for the attributes' names, capitals or not; its group `unit` is the unit.
        measure: images n 1 *s in [-1, 1], spacing in mm -> n: mL of volumes, cm² of slices.
        of: what is measured, in words.
    """

    names: str
    measure: Callable[[Tensor, Sequence[float]], Tensor]
    of: str


RULES = (
    Rule(f"((lateral_)?ventric(les?|ular)|vcsf){SIZE}", ventricle_volume, "fluid in the middle of the brain"),
    Rule(f"brain{SIZE}", brain_volume, "grey and white matter"),
)
"""The attributes that can be measured."""

SCORES: dict[str, type[AgreementMetric]] = {"r": Correlation, "slope": Slope, "error": MeanAbsoluteError}
"""Ending of a score's name -> the score; `error` only where the unit is known."""


class Points(NamedTuple):
    """Requested and measured values, a point for each request; several images of a person asked for at once are one."""

    requested: Tensor
    """n, float64."""
    measured: Tensor
    """n, float64."""
    people: list[str]
    """n, who each was like; "" for nobody."""


class Line(NamedTuple):
    """The least-squares line through points, for a figure."""

    requested: Tensor
    """k, from the lowest to the highest that was asked for."""
    measured: Tensor
    """k, on the line."""
    error: Tensor
    """k, standard error by the jackknife over people."""


@dataclass(frozen=True)
class Agreement:
    """What is said of an attribute.

    Attributes:
        samples: of the samples.
        real: of real images.
        rows: name of a score -> what the report says of it.
        unit: of requested values, "" where it is not known; and of measured ones.
    """

    samples: Points
    real: Points
    rows: Mapping[str, Mapping[str, Any]]
    unit: tuple[str, str]


def agreements(
    samples: Images, real: Images, made_from: Sequence[Mapping[str, Any]], data: TrainingData, known: Known
) -> dict[str, Agreement]:
    """Attribute -> agreement of the samples with it, for all that were asked for and can be measured.

    Args:
        samples: n c *s in [-1, 1].
        real: images of the test people, one visit of each, as `data.images` gives them.
        made_from: n, what each sample was made from, as `Requests.made_from` says it.
        data: whose people the real images are of.
        known: results that are shared with other scores.
    """
    names = dict.fromkeys(name for row in made_from for name in row if math.isfinite(_number(row, name)))
    rules = {name: rule for name in names if (rule := rule_for(name))} if data.anatomy == "brain" else {}
    if not rules:
        return {}
    keys = {row.get("key", "") for row in made_from}
    of_real = list(data.requests("test").made_from)
    # The same people as the samples are like, or all where the samples are like nobody.
    chosen = [i for i, row in enumerate(of_real) if row["key"] in keys] or range(len(of_real))
    found = {}
    for name, rule in rules.items():
        scale, unit = _unit(name, rule, len(data.spec.size))
        how = (rule.measure, tuple(data.spec.spacing_mm))
        values, of_people = (known(_measured, images, *how) * scale for images in (samples, real))
        people = dict(zip(real.keys, real.people, strict=True))
        points = _points(name, made_from, values, people)
        ceiling = _points(name, [of_real[i] for i in chosen], of_people[list(chosen)], people)
        if min(len(points.people), len(ceiling.people)) >= MIN_POINTS:
            found[name] = Agreement(points, ceiling, dict(_rows(name, points, ceiling, unit, rule)), unit)
    return found


def rule_for(name: str) -> Rule | None:
    """The rule that measures an attribute; None where there is none."""
    return next((rule for rule in RULES if re.fullmatch(rule.names, name, re.IGNORECASE)), None)


def _unit(name: str, rule: Rule, dim: int) -> tuple[float, tuple[str, str]]:
    """What measured values are multiplied by, and the units of requested and of measured values."""
    match = re.fullmatch(rule.names, name, re.IGNORECASE)
    unit = ((match and match["unit"]) or "").lower()
    asked = {"ml": "mL", "l": "L"}.get(unit, unit)
    if dim == 2:
        return 1.0, (asked, "cm²")
    return 1 / UNITS_ML.get(unit, 1.0), (asked, asked or "mL")


def _measured(images: Images, measure: Callable[..., Tensor], spacing_mm: Sequence[float]) -> Tensor:
    """n: what a rule measures on every image, on the CPU, since it chooses its region by what it sees."""
    return of_each(images, measure, torch.device("cpu"), spacing_mm)


def _number(row: Mapping[str, Any], name: str) -> float:
    """The value of an attribute; NaN where it is not known."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _points(name: str, made_from: Sequence[Mapping[str, Any]], measured: Tensor, people: Mapping[str, str]) -> Points:
    """The points of an attribute; images of one person (slices), each asked for as often, are averaged.

    Args:
        name: of the attribute.
        made_from: n, what each image was made from.
        measured: n.
        people: key of an image of the data -> whose it is.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    seen: Counter[str] = Counter()
    for i, row in enumerate(made_from):
        if not math.isfinite(_number(row, name)):
            continue
        key = row.get("key", "")
        who = people.get(key, "")
        groups.setdefault((who, seen[key]) if who else ("", i), []).append(i)
        seen[key] += 1
    requested = [np.mean([made_from[i][name] for i in some]) for some in groups.values()]
    shown = [float(measured[some].mean()) for some in groups.values()]
    points = torch.tensor([requested, shown], dtype=torch.float64).view(2, -1)
    return Points(points[0], points[1], [who for who, _ in groups])


def line_through(points: Points) -> Line:
    """The least-squares line of measured over requested values."""
    at = torch.linspace(float(points.requested.min()), float(points.requested.max()), NUM_ON_LINE, dtype=torch.float64)
    every = torch.ones(len(points.people), dtype=torch.bool)
    left_out = []
    for some in images_of_people(points.people).values():
        kept = every.clone()
        kept[some] = False
        left_out.append(_on_line(points, kept, at))
    lines, n = torch.stack(left_out), len(left_out)
    error = ((n - 1) / n * (lines - lines.mean(0)).square().sum(0)).sqrt()
    return Line(at, _on_line(points, every, at), error)


def _on_line(points: Points, kept: Tensor, at: Tensor) -> Tensor:
    """Values at `at` of the line through some of the points."""
    requested, measured = points.requested[kept], points.measured[kept]
    return measured.mean() + Slope().score(requested, measured) * (at - requested.mean())


def _rows(
    name: str, points: Points, ceiling: Points, unit: tuple[str, str], rule: Rule
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of a score -> value and interval, those of real images, and numbers of points."""
    for ending, kind in SCORES.items():
        if kind is MeanAbsoluteError and unit[0] != unit[1]:
            continue
        of_samples, of_real = kind(), kind()
        of_samples.update(*points)
        of_real.update(*ceiling)
        estimate = of_real.estimate()
        of_samples.features = f"{rule.of}, {unit[1]}"
        yield (
            f"{name}_{ending}",
            row_of(of_samples, num=len(points.people), num_real=len(ceiling.people))
            | {"real": estimate.value, "real_ci95": list(estimate.ci95)},
        )
