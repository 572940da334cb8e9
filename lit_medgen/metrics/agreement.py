"""Agreement of what images were asked to show with what is measured on them, with intervals over people.

With requested values a and measured values m:

    correlation  Pearson's r of a and m: 1 if order and distances are kept, whatever the scale
    slope        of the least-squares line of m over a: 1 if a unit more is asked for, a unit more is shown; below 1 the
                 model draws everything towards the mean
    error        mean |m - a|, in the unit of a
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lit_medgen.metrics.base import IntervalMetric, images_of_people, jackknife_variance

TINY = 1e-300
"""Keeps a ratio finite whose numerator is 0."""


class AgreementMetric(IntervalMetric):
    """A score of requested and measured values, n each, in the same order."""

    requested: list[Tensor]
    measured: list[Tensor]
    people: list[str]

    def __init__(self) -> None:
        super().__init__()
        for name in ("requested", "measured"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.people = []

    def reset(self) -> None:
        """Forgets all values that were added."""
        super().reset()
        self.people = []

    def update(self, requested: Tensor, measured: Tensor, people: Sequence[str] | None = None) -> None:
        """Adds values, n each; ValueError if their numbers differ.

        Args:
            requested: what was asked for.
            measured: what the image shows, in the same unit wherever units matter.
            people: who each request was like, so that the jackknife leaves a person out at a time; None: nobody.
        """
        if requested.shape != measured.shape:
            raise ValueError(f"requested are {tuple(requested.shape)}, measured {tuple(measured.shape)}; give pairs.")
        self.requested.append(requested.double())
        self.measured.append(measured.double())
        self.people += people or [""] * len(requested)

    def compute(self) -> Tensor:
        """The score of all pairs, a float64 scalar."""
        return self.score(dim_zero_cat(self.requested), dim_zero_cat(self.measured))

    def with_error(self) -> tuple[float, float]:
        """The score and its standard error by the jackknife, which leaves out a person at a time."""
        requested, measured = dim_zero_cat(self.requested), dim_zero_cat(self.measured)
        left_out = []
        for some in images_of_people(self.people).values():
            kept = torch.ones(len(requested), dtype=torch.bool)
            kept[some] = False
            left_out.append(self.score(requested[kept], measured[kept]))
        return float(self.score(requested, measured)), jackknife_variance(torch.stack(left_out)) ** 0.5

    @abstractmethod
    def score(self, requested: Tensor, measured: Tensor) -> Tensor:
        """The score of n requested and n measured values, a scalar."""


class Correlation(AgreementMetric):
    """Pearson correlation of requested and measured values; 0 where one of them is the same in all pairs."""

    limits = (-1.0, 1.0)
    best = "higher"

    def score(self, requested: Tensor, measured: Tensor) -> Tensor:
        """Pearson's r of n pairs of values."""
        a, m = requested - requested.mean(), measured - measured.mean()
        return (a * m).sum() / (a.square().sum() * m.square().sum()).sqrt().clamp(min=TINY)


class Slope(AgreementMetric):
    """Slope of the least-squares line of measured over requested values; 0 where all that is requested is the same."""

    def score(self, requested: Tensor, measured: Tensor) -> Tensor:
        """The slope of the line through n pairs."""
        a = requested - requested.mean()
        return (a * measured).sum() / a.square().sum().clamp(min=TINY)


class MeanAbsoluteError(AgreementMetric):
    """Mean absolute difference of measured from requested values, in their unit."""

    limits = (0.0, float("inf"))
    best = "lower"

    def score(self, requested: Tensor, measured: Tensor) -> Tensor:
        """The mean absolute difference of n pairs."""
        return (measured - requested).abs().mean()


class MeanDifference(AgreementMetric):
    """Mean of measured less requested values."""

    features = "values"

    def score(self, requested: Tensor, measured: Tensor) -> Tensor:
        """The mean difference of n pairs."""
        return (measured - requested).mean()


class ShareAbove(AgreementMetric):
    """Share of pairs whose measured value is above the requested one, ties counting one half."""

    limits = (0.0, 1.0)

    def score(self, requested: Tensor, measured: Tensor) -> Tensor:
        """The share of n pairs."""
        return ((measured > requested).double() + (measured == requested).double() / 2).mean()
