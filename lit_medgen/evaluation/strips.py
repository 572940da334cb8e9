"""What a model makes of an attribute: images of one seed, with the attribute swept over its training range.

All other attributes are unknown to the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_medgen.batch import Condition, DataSpec, Request, Requests
from lit_medgen.networks.conditioning import Covariates

NUM_VALUES = 7
"""Images of an attribute that is a number."""
SEED = 0


@dataclass(frozen=True)
class Strip:
    """Images of one seed that differ in an attribute alone.

    Attributes:
        values: n, of the attribute.
        images: n c *s in [-1, 1].
    """

    values: list[float]
    images: Tensor


def strips(
    show: Callable[[Requests], Iterable[Tensor]], attributes: Sequence[str], spec: DataSpec, covariates: Covariates
) -> dict[str, Strip]:
    """Attribute -> its strip.

    Args:
        show: makes the images of requests, a batch at a time.
        attributes: those that the model is made from.
        spec: of the training data.
        covariates: which attributes are categories and labels; where it says nothing, they are numbers.
    """
    found = {}
    for name in attributes:
        values = _values(name, spec, covariates)
        requests = _requests([{**_beside(name, covariates), name: value} for value in values])
        found[name] = Strip(values, torch.cat(list(show(requests))))
    return found


def strip_file(name: str) -> str:
    """The file of an attribute's strip, below the folder of the report."""
    return f"attributes/{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.png"


def _values(name: str, spec: DataSpec, covariates: Covariates) -> list[float]:
    """Values of an attribute from the lowest to the highest; of a code or category each that there is."""
    if name in covariates.categories:
        return [float(value) for value in range(covariates.categories[name])]
    low, high = spec.attributes[name]
    if low == high or name in spec.codes or any(name in labels for labels in covariates.labels.values()):
        return sorted({low, high})
    return torch.linspace(low, high, NUM_VALUES, dtype=torch.float64).tolist()


def _beside(name: str, covariates: Covariates) -> dict[str, float]:
    """The other labels of a label's set, all 0, since a set counts as unknown where one of them is."""
    return {other: 0.0 for labels in covariates.labels.values() if name in labels for other in labels}


def _requests(rows: Sequence[Mapping[str, float]]) -> Requests:
    """One seed, asked for with each of these attributes."""

    def read(index: int) -> Request:
        attributes = {name: torch.tensor([value], dtype=torch.float32) for name, value in rows[index].items()}
        return Request([SEED], Condition(attributes=attributes))

    return Requests([SEED] * len(rows), rows, frozenset({"attributes"}), read)
