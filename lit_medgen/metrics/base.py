"""Scores of samples against real images, with intervals over people.

Every score is a function of statistics per image or per pair of images, so leaving some images out is cheap, and
the interval is a jackknife: a bootstrap would count an image's likeness to itself, a subsample is biased for
scores that depend on the number of images. An interval ends where the score's range does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_medgen.batch import Images
from lit_medgen.metrics.known import Known, as_images, of_each


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % interval."""

    value: float
    ci95: tuple[float, float]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval; None where there is none, as of one person."""
        return None if math.isnan(self.ci95[0]) else self.ci95


class LeftOut(NamedTuple):
    """Indices of the samples x and of the real images y that a jackknife leaves out at once."""

    x: Tensor
    y: Tensor


Best = Literal["lower", "higher", "real"]
"""What is best of a score: the lowest value, the highest, or the one nearest to that of real images."""


class IntervalMetric(Metric, ABC):
    """A score with an interval over people; one process computes it, and the others do not wait for it."""

    full_state_update = False
    features: str
    """What the score is computed from, for the report."""
    limits: tuple[float, float] = (-float("inf"), float("inf"))
    """The range of the score."""
    best: Best = "real"
    """Which value is best, when models are compared by it."""

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)

    @abstractmethod
    def with_error(self) -> tuple[float, float]:
        """The score and its standard error by the jackknife, which leaves out a person at a time."""

    def estimate(self) -> Estimate:
        """The score and its interval, which ends where the score's range does, but holds the score in any case."""
        value, error = self.with_error()
        low, high = max(value - 1.96 * error, self.limits[0]), min(value + 1.96 * error, self.limits[1])
        return Estimate(value, (min(low, value), max(high, value)))


class TwoSampleMetric(IntervalMetric):
    """A score of samples against real images; both are collected by `update`, n c *s in [-1, 1].

    The interval leaves out a person at a time, who may have any number of images; an image that is nobody's counts by
    itself. Where samples are of the same people as real images (reconstructions), a person is left out of both.

    Args:
        known: results shared with other scores of the same images, and the device; None: nothing is shared.
    """

    against: Literal["test", "train"] = "test"
    """The people that samples are compared with."""
    of_one_set = False
    """Whether it says something of the samples alone, so that real images have such a value too."""
    conservative = False
    """Whether the jackknife's error of a perfect model is far above the true one (docs/intervals.md)."""

    samples: list[Tensor | Images]
    real: list[Tensor | Images]

    def __init__(self, known: Known | None = None) -> None:
        super().__init__()
        self.known = known or Known(remember=False)
        self.add_state("samples", default=[], dist_reduce_fx="cat")
        self.add_state("real", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor | Images, real: bool, people: Sequence[str] | None = None) -> None:
        """Adds images, samples or real ones, to what is compared.

        Args:
            images: n c *s in [-1, 1], or what reads them.
            real: whether they are real images; else samples.
            people: whose each image of a tensor is; None: nobody's.
        """
        if isinstance(images, Tensor) and people is not None:
            images = Images.of(images, people)
        (self.real if real else self.samples).append(images)

    def compute(self) -> Tensor:
        """The score without interval and floor, a float64 scalar."""
        return torch.tensor(self._score_of_all()[0], dtype=torch.float64)

    def with_error(self) -> tuple[float, float]:
        """The score and its standard error by the jackknife, over samples and over real images."""
        value, statistics, samples, real = self._score_of_all()
        num = len(samples), len(real)
        # No real image counts where the score is of samples alone.
        rounds = _rounds(samples.people, [] if self.of_one_set else real.people)
        return value, sum(jackknife_variance(self.without(statistics, some, num)) for some in rounds) ** 0.5

    def without(self, statistics: dict[str, Tensor], left_out: Sequence[LeftOut], num: tuple[int, int]) -> Tensor:
        """The score without some images, for each choice of them.

        Args:
            statistics: of all images.
            left_out: the choices.
            num: how many samples and real images there are in all.
        """
        scores = [
            self.score(statistics, *(_all_but(some, n) for some, n in zip(part, num, strict=True))) for part in left_out
        ]
        return torch.tensor(scores, dtype=torch.float64)

    def of_sets(self, sets: Sequence[Tensor], together: Tensor | None = None) -> list[float]:
        """The score of some sets of the samples (indices), against all real images each.

        Args:
            sets: the sets.
            together: n n, bool: the pairs of samples that are in one set, all that scores of pairs look at; None: all.
        """
        samples, real = _joined(self.samples), _joined(self.real)
        statistics, every = self.statistics(samples, real, together), torch.arange(len(real))
        return [self.score(statistics, some, every) for some in sets]

    def _score_of_all(self) -> tuple[float, dict[str, Tensor], Images, Images]:
        samples, real = _joined(self.samples), _joined(self.real)
        statistics = self.statistics(samples, real)
        value = self.score(statistics, torch.arange(len(samples)), torch.arange(len(real)))
        return value, statistics, samples, real

    @abstractmethod
    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """What the score is made of; axes named x run over samples, y over real images.

        Args:
            samples: what is scored.
            real: what it is compared with.
            together: n n, bool: the pairs of samples that are asked for; None: all.
        """

    @abstractmethod
    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""


class RelativeMetric(TwoSampleMetric):
    """A statistic of every image, summarised over samples relative to real images; 1 is as real.

    Attributes:
        statistic: images in float64 (n c *s) and `arguments` -> n or n d.
        min_real: a summary of real images counts as at least this.
        on_cpu: whether it is computed there wherever images are worked on.
    """

    limits = (0.0, float("inf"))
    statistic: ClassVar[Callable[..., Tensor]]
    arguments: tuple[Any, ...] = ()
    min_real = 0.0
    on_cpu = False

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """The statistic of every image."""
        how = self.statistic, torch.device("cpu") if self.on_cpu else self.known.device, *self.arguments
        return {name: self.known(of_each, z, *how) for name, z in (("x", samples), ("y", real))}

    @abstractmethod
    def _summary(self, values: Tensor) -> Tensor:
        """Scalar or d: of the statistic of some images, n or n d."""

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The ratio of the summaries, averaged over d."""
        of_samples, of_real = self._summary(statistics["x"][x]), self._summary(statistics["y"][y])
        return float((of_samples / of_real.clamp(min=self.min_real)).mean())


def _rounds(x: list[str], y: list[str]) -> list[list[LeftOut]]:
    """What each jackknife leaves out, a person at a time: one over both sets if they share people, else one of each."""
    nobody = torch.empty(0, dtype=torch.long)
    of_x, of_y = (images_of_people(people) for people in (x, y))
    if (set(x) & set(y)) - {""}:
        return [[LeftOut(of_x.get(who, nobody), of_y.get(who, nobody)) for who in dict.fromkeys([*of_x, *of_y])]]
    rounds = [LeftOut(some, nobody) for some in of_x.values()], [LeftOut(nobody, some) for some in of_y.values()]
    return [some for some in rounds if some]


def images_of_people(people: Sequence[str]) -> dict[str, Tensor]:
    """Person -> indices of the images; an image that is nobody's ("") has a name of its own."""
    found: dict[str, list[int]] = {}
    for i, who in enumerate(people):
        found.setdefault(who or f"image {i} of {id(people)}", []).append(i)
    return {who: torch.tensor(some) for who, some in found.items()}


def _all_but(some: Tensor, num: int) -> Tensor:
    kept = torch.ones(num, dtype=torch.bool)
    kept[some] = False
    return kept.nonzero().flatten()


def jackknife_variance(values: Tensor) -> float:
    """The square of a score's standard error, from its values without each person."""
    n = len(values)
    return float((n - 1) / n * (values - values.mean()).square().sum())


def mean_over_people(values: Tensor, people: Sequence[str]) -> Estimate:
    """The mean of images' values, n, with its interval by the jackknife over people; NaN for the ends of one person's.

    Args:
        values: n, float64.
        people: n, whose each image is; "" for nobody's.
    """
    mean, whose = float(values.mean()), images_of_people(people)
    if len(whose) < 2:
        return Estimate(mean, (float("nan"), float("nan")))
    sums = torch.stack([values[some].sum() for some in whose.values()])
    counts = torch.tensor([len(some) for some in whose.values()])
    error = jackknife_variance((values.sum() - sums) / (len(values) - counts)) ** 0.5
    return Estimate(mean, (mean - 1.96 * error, mean + 1.96 * error))


def _joined(parts: list[Tensor | Images]) -> Images:
    """All images; the same object where they came at once, so that results of them can be shared."""
    if len(parts) == 1:
        return as_images(parts[0])
    images = [as_images(part) for part in parts]
    index = [(part, i) for part in images for i in range(len(part))]

    def read(indices: Sequence[int]) -> Tensor:
        return torch.cat([part.read([i]) for part, i in (index[k] for k in indices)])

    keys = [key for part in images for key in part.keys]
    return Images(keys, [who for part in images for who in part.people], read)
