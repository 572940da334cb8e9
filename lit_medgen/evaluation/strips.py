"""What a model makes of an attribute: images of one seed, with the attribute swept over its training range.

All other attributes are unknown to the model. One that makes images from label maps is shown on the maps of some test
people, a row for each (figure 5.7 of Zu 2023), with the surroundings of the nodule below where the map has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_medgen.batch import Condition, DataSpec, Request, Requests
from lit_medgen.evaluation.nodules import Nodules
from lit_medgen.networks.conditioning import Covariates

NUM_VALUES = 7
"""Images of an attribute that is a number."""
NUM_MAPS = 2
"""Label maps, or sources, that an attribute is shown on."""
NUM_SEARCHED = 64
"""Label maps of test people among which nodules are looked for."""
SEED = 0


@dataclass(frozen=True)
class Strip:
    """Images of one seed that differ in an attribute alone.

    Attributes:
        values: n, of the attribute.
        rows: of each map n c *s in [-1, 1], and, where it has a nodule, its surroundings in them; of a model that is
            made from nothing else, one row.
    """

    values: list[float]
    rows: list[Tensor]


def strips(
    show: Callable[[Requests], Iterable[Tensor]],
    attributes: Sequence[str],
    spec: DataSpec,
    covariates: Covariates,
    like: Requests | None = None,
) -> dict[str, Strip]:
    """Attribute -> its strip.

    Args:
        show: makes the images of requests, a batch at a time.
        attributes: those that the model is made from.
        spec: of the training data.
        covariates: which attributes are categories and labels; where it says nothing, they are numbers.
        like: requests like the test people, with all parts that images must be made from; None: nothing must be given.
    """
    if like is None or not like.parts or not attributes:
        nodules, chosen = Nodules({}, {}, ()), {0: Condition()}
    else:
        nodules = Nodules.of(like, spec, limit=min(NUM_SEARCHED, len(like)))
        chosen = _chosen(like, nodules)
    found = {}
    for name in attributes:
        values, rows = values_of(name, spec, covariates), []
        for number, condition in chosen.items():
            requests = _requests([{**beside(name, covariates), name: value} for value in values], condition)
            rows.append(torch.cat(list(show(requests))))
            if number in nodules.middles and nodules.size != spec.size:
                rows.append(nodules.around(rows[-1], [number] * len(values)))
        found[name] = Strip(values, rows)
    return found


def strip_file(name: str) -> str:
    """The file of an attribute's strip, below the folder of the report."""
    return f"attributes/{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.png"


def _chosen(like: Requests, nodules: Nodules) -> dict[int, Condition]:
    """Number of a request -> its condition without attributes, of those that attributes are shown on.

    Those with a nodule, if there are any: elsewhere an attribute of nodules has nothing to change.
    """
    numbers = list(nodules.middles)[:NUM_MAPS] or range(min(NUM_MAPS, len(like)))
    return {number: replace(like.read(number).condition, attributes={}) for number in numbers}


def values_of(name: str, spec: DataSpec, covariates: Covariates) -> list[float]:
    """Values of an attribute from the lowest to the highest; of a code or category each that there is."""
    if name in covariates.categories:
        return [float(value) for value in range(covariates.categories[name])]
    low, high = spec.attributes[name]
    if low == high or name in spec.codes or any(name in labels for labels in covariates.labels.values()):
        return sorted({low, high})
    return torch.linspace(low, high, NUM_VALUES, dtype=torch.float64).tolist()


def beside(name: str, covariates: Covariates) -> dict[str, float]:
    """The other labels of a label's set, all 0, since a set counts as unknown where one of them is."""
    return {other: 0.0 for labels in covariates.labels.values() if name in labels for other in labels}


def _requests(rows: Sequence[Mapping[str, float]], condition: Condition) -> Requests:
    """One seed, asked for with each of these attributes, and all else that a condition says."""

    def read(index: int) -> Request:
        attributes = {name: torch.tensor([value], dtype=torch.float32) for name, value in rows[index].items()}
        return Request([SEED], replace(condition, attributes=attributes))

    return Requests([SEED] * len(rows), rows, frozenset({"attributes", *condition.parts}), read)
