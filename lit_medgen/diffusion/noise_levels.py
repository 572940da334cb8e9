"""Noise levels of training and evaluation: spread evenly over images, never drawn one by one.

All are pure functions; `Method.times` knows the rank, the seed and the step. Times are float32 in [t_min, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

GOLDEN_RATIO = (5**0.5 - 1) / 2


def stratified_times(num: int, total: int, first: int, offset: float, t_min: float) -> Tensor:
    """Times in [t_min, 1], num: this rank's share of `total` evenly spread ones (Kingma et al. 2021, appendix I.1).

    Args:
        num: times on this rank.
        total: times over all ranks.
        first: index of this rank's first among all.
        offset: one draw from [0, 1), the same on all ranks.
        t_min: the least time.
    """
    position = (offset + (first + torch.arange(num, dtype=torch.float64)) / total) % 1
    return (t_min + (1 - t_min) * position).float()


def evaluation_times(image: Tensor, repeat: int, num_repeats: int, offset: float, t_min: float) -> Tensor:
    """A time in [t_min, 1] for each image, b -> b: one of `num_repeats` evenly spread ones that the image is seen at.

    Those of one image lie between those of the images before it, by the golden ratio, which leaves no large gap
    however many images there are. They depend on no batch size and on no number of ranks.

    Args:
        image: indices of the images among all that are evaluated, int64.
        repeat: 0 to num_repeats - 1.
        num_repeats: times that each image is seen at.
        offset: where the first image's times lie, in [0, 1).
        t_min: the least time.
    """
    position = (repeat + (offset + image.double() * GOLDEN_RATIO) % 1) / num_repeats
    return (t_min + (1 - t_min) * position).float()


def dense_near_data(even: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
    """Times that are denser near t_min, and the share of each in a mean over [t_min, 1]; b each, from `even` times b.

    For evaluation, which affords few times: a loss rises steeply towards t_min, so that its mean would otherwise hang
    on how near the least of the times comes to it. The shares make up for the density: they have mean 1.

    Args:
        even: evenly spread in [0, 1].
        t_min: the least time.
    """
    return t_min + (1 - t_min) * even**2, 2 * even


def levels(even: Tensor, num_levels: int) -> Tensor:
    """Whole levels 1 to T = `num_levels`, int64, from times evenly spread in [0, 1]; b -> b."""
    return (even * num_levels).ceil().long().clamp(1, num_levels)


class TrainingTimes(ABC):
    """Which times a network is trained at: a map of evenly spread positions, whose strata it keeps.

    Evaluation keeps its own times (`dense_near_data`), so that validation losses compare whatever was trained at.
    """

    @abstractmethod
    def quantile(self, position: Tensor) -> Tensor:
        """The time in [0, 1] below which a share of all times lies; any shape in [0, 1], float64."""

    def __call__(self, even: Tensor, t_min: float) -> Tensor:
        """Times in [t_min, 1], float32, from positions evenly spread in [0, 1]; b -> b."""
        return (t_min + (1 - t_min) * self.quantile(even.double())).float()


class UniformTimes(TrainingTimes):
    """All times in [t_min, 1] alike, the default of methods."""

    def quantile(self, position: Tensor) -> Tensor:
        """The time itself, which is the share of those below it."""
        return position


class LogitNormal(TrainingTimes):
    """More of the times between data and noise: log(t / (1 - t)) ~ N(mean, std^2).

    Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", section 3.1, take mean
    0 and std 1 for rectified flow. A shift of `RectifiedFlow` comes on top: it adds log shift to the mean.

    Args:
        mean: above 0 for more noise.
        std: the smaller, the more alike the times.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if not math.isfinite(mean):
            raise ValueError(f"mean is {mean}; give a number, 0 for as many times below 1/2 as above.")
        if not 0 < std < math.inf:
            raise ValueError(f"std is {std}; give a number above 0.")
        self.mean, self.std = mean, std

    def quantile(self, position: Tensor) -> Tensor:
        """The logistic function of a normal quantile."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(position))
