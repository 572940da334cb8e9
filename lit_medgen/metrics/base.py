"""Scores of samples against real images, with intervals over people.

Every score is a function of statistics per image or per pair of images, so leaving one image out is cheap, and
the interval is a jackknife: a bootstrap would count an image's likeness to itself, a subsample is biased for
scores that depend on the number of images. An interval ends where the score's range does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_medgen.metrics.known import Known


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % interval."""

    value: float
    ci95: tuple[float, float]

    @classmethod
    def of(cls, value: float, error: float, limits: tuple[float, float]) -> Estimate:
        """From the value, its standard error and the range of the score; the interval holds the value in any case."""
        low, high = max(value - 1.96 * error, limits[0]), min(value + 1.96 * error, limits[1])
        return cls(value, (min(low, value), max(high, value)))


class TwoSampleMetric(Metric, ABC):
    """A score of samples against real images; both are collected by `update`, n c *s in [-1, 1].

    Samples are independent; of real people there may be several images each, a person's in a row, and the interval
    leaves out a person at a time.
    """

    full_state_update = False
    features: str
    """What the score is computed from, for the report."""
    against: Literal["test", "train"] = "test"
    """The people that samples are compared with."""
    per_person = 1
    """Real images of each person; what intervals are over."""
    tied = False
    """Whether samples are reconstructions of real images, in their order: a person is then left out of both."""
    of_one_set = False
    """Whether it says something of the samples alone, so that real images have such a value too."""
    limits: tuple[float, float] = (-float("inf"), float("inf"))
    """The range of the score."""
    conservative = False
    """Whether the jackknife's error of a perfect model is far above the true one (docs/intervals.md)."""
    wanted: Tensor | None = None
    """n n, bool: the pairs of samples that scores will be asked of; None: all."""
    known = Known(remember=False)
    """Results shared with other scores of the same images, and the device."""

    samples: list[Tensor]
    real: list[Tensor]

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # one process scores all samples; the others do not wait for it
        self.add_state("samples", default=[], dist_reduce_fx="cat")
        self.add_state("real", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """Adds images, n c *s in [-1, 1]."""
        (self.real if real else self.samples).append(images)

    def compute(self) -> Tensor:
        """The score alone, float64."""
        return torch.tensor(self._score_of_all()[0], dtype=torch.float64)

    def estimate(self) -> Estimate:
        """The score and its jackknife interval over samples and real images."""
        return Estimate.of(*self.with_error(), self.limits)

    def with_error(self) -> tuple[float, float]:
        """The score and its standard error by the jackknife."""
        value, statistics, all_x, all_y = self._score_of_all()
        per_x = self.per_person if self.tied else 1
        people_x, people_y = all_x // per_x, all_y // self.per_person
        if self.tied and self.against == "test":
            pairs = ((all_x[people_x != i], all_y[people_y != i]) for i in people_x.unique())
            left_out = [torch.tensor([self.score(statistics, x, y) for x, y in pairs], dtype=torch.float64)]
        else:
            left_out = list(self.without_each(statistics, people_x, people_y))
        return value, sum(map(_jackknife_variance, left_out)) ** 0.5

    def without_each(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The scores without the samples of each person, and without the real images of each.

        Args:
            statistics: of all images.
            x: whose each sample is: 0, 1, ...
            y: whose each real image is.
        """
        all_x, all_y = torch.arange(len(x)), torch.arange(len(y))
        without_x = [self.score(statistics, all_x[x != i], all_y) for i in x.unique()]
        without_y = [self.score(statistics, all_x, all_y[y != i]) for i in y.unique()]
        return torch.tensor(without_x, dtype=torch.float64), torch.tensor(without_y, dtype=torch.float64)

    def _score_of_all(self) -> tuple[float, dict[str, Tensor], Tensor, Tensor]:
        samples, real = _joined(self.samples), _joined(self.real)
        statistics = self.statistics(samples, real)
        all_x, all_y = torch.arange(len(samples)), torch.arange(len(real))
        return self.score(statistics, all_x, all_y), statistics, all_x, all_y

    @abstractmethod
    def statistics(self, samples: Tensor, real: Tensor) -> dict[str, Tensor]:
        """What the score is made of; axes named x run over samples, y over real images."""

    @abstractmethod
    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""


def _jackknife_variance(values: Tensor) -> float:
    n = len(values)
    return float((n - 1) / n * (values - values.mean()).square().sum())


def _joined(images: list[Tensor]) -> Tensor:
    """All images; the same object where they came at once, so that results of them can be shared."""
    joined: Tensor = images[0] if len(images) == 1 else dim_zero_cat(images)
    return joined


def mean_off_diagonal(matrix: Tensor) -> Tensor:
    """Mean of a square matrix without its diagonal."""
    n = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))
