"""The score that real images get in the place of samples: what a perfect model would get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.evaluation.held import Sets
from lit_medgen.metrics import TwoSampleMetric

NUM_FLOORS = 8
"""Real-vs-real values are means over this many random sets of training images."""


def measure(make: Callable[[], TwoSampleMetric], samples: Images, train: Images, real: Images) -> TwoSampleMetric:
    """A score that has seen the samples, and the people that it compares them with."""
    metric = make()
    metric.update(samples, real=False)
    metric.update(train if metric.against == "train" else real, real=True)
    return metric


def floor(make: Callable[[], TwoSampleMetric], train: Tensor | Images, real: Tensor | Images, num: int) -> float:
    """The score that real images get: mean over random sets of training images, as many as there are samples."""
    metric = make()
    metric.update(train, real=False)
    metric.update(real, real=True)
    # The same tensor for every score, so that its pairs are known.
    together = metric.known(_pairs_within, len(train), num)
    return float(np.mean(metric.of_sets(_floor_sets(len(train), num), together)))


def real_vs_real(make: Callable[[], TwoSampleMetric], sets: Sets) -> tuple[float, dict[str, Any]]:
    """The score of real images in the place of samples; the mean of so many sets of so many images, of which people."""
    if make().of_one_set:
        value = measure(make, sets.real, sets.train, sets.real).compute().item()
        return value, {"sets": 1, "images": len(sets.real), "people": "test"}
    chosen = _floor_sets(len(sets.train), len(sets.samples))
    value = floor(make, sets.train, sets.real, len(sets.samples))
    return value, {"sets": len(chosen), "images": len(chosen[0]), "people": "train"}


def _floor_sets(num_train: int, num: int) -> list[Tensor]:
    """Indices of the training images in each set of the floor; one set where it holds them all."""
    sets = [torch.from_numpy(np.random.default_rng(k).permutation(num_train)[:num]) for k in range(NUM_FLOORS)]
    return sets if num < num_train else sets[:1]


def _pairs_within(num_train: int, num: int) -> Tensor:
    """n n, bool: the pairs of training images that are together in some set of the floor."""
    together = torch.zeros(num_train, num_train, dtype=torch.bool)
    for chosen in _floor_sets(num_train, num):
        together[chosen[:, None], chosen] = True
    return together
