r"""Copies of training images among samples: nearest training images, thresholds from real people, shares, and C_T.

A sample is called a copy where its likeness to its nearest training image is above the threshold t. The threshold comes
from real people whom the model never saw, against the same training images: of n of them, t is the r-th highest
likeness, r = floor(a (n + 1)) and at least 1. As one more unseen person is exchangeable with these, exactly r / (n + 1)
of them lie above t, and the rate at this very t has the distribution Beta(r, n + 1 - r), whence its interval (Vovk,
Lei & Wasserman: conformal prediction). How many of m samples lie above t by chance is beta-binomial, whence p.

    C_T   the z-score of a Mann-Whitney test whether samples lie nearer to training images than unseen people do, in
          cells of the training images, averaged over the cells by the unseen people there (Meehan, Chaudhuri &
          Dasgupta, "A non-parametric test to detect data-copying in generative models", AISTATS 2020, section 3).
          Far below 0: copying; far above: samples unlike training images.

Shapes: n queries, m training images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from lit_medgen.metrics.base import images_of_people

NUM_CELLS = 3
MIN_IN_CELL = 20
"""Samples, and unseen images, in each cell of C_T; with fewer there is one cell."""
ROWS = 4096
"""Queries that are compared with all training images at a time."""


@dataclass(frozen=True)
class Nearest:
    """The training image most like each query.

    Attributes:
        index: n.
        likeness: n, at most 1.
    """

    index: Tensor
    likeness: Tensor


def nearest(queries: Sequence[Tensor], training: Tensor) -> Nearest:
    """For each of n queries, of which each tensor (n d, rows of norm 1) is a view, the nearest of m rows (m d)."""
    best = Nearest(torch.zeros(len(queries[0]), dtype=torch.long), torch.full((len(queries[0]),), -2.0))
    for view in queries:
        found = [(rows @ training.T).max(1) for rows in view.split(ROWS)]
        index, likeness = (torch.cat(parts) for parts in ([f.indices for f in found], [f.values for f in found]))
        better = likeness > best.likeness
        best = Nearest(torch.where(better, index, best.index), torch.where(better, likeness, best.likeness))
    return best


@dataclass(frozen=True)
class Threshold:
    """The likeness above which a sample is called a copy.

    Attributes:
        value: the likeness.
        rank: which highest of the unseen people's it is, r.
        num_people: how many these are, n.
    """

    value: float
    rank: int
    num_people: int

    @classmethod
    def of(cls, likeness: Tensor, people: Sequence[str], rate: float) -> Threshold:
        """The threshold that at most so many unseen people lie above, and one in n + 1 at least.

        Args:
            likeness: n, of each image of unseen people to its nearest training image.
            people: n, whose each is; each of k images of a person counts 1 / k.
            rate: share of unseen people that may lie above.
        """
        whose = images_of_people(people)
        weights = torch.zeros(len(likeness), dtype=torch.float64)
        for some in whose.values():
            weights[some] = 1 / len(some)
        rank = max(1, math.floor(rate * (len(whose) + 1) + 1e-9))
        order = likeness.argsort(descending=True)
        above = weights[order].cumsum(0) - weights[order]
        last = int((above <= rank - 1 + 1e-9).sum()) - 1
        return cls(float(likeness[order[last]]), rank, len(whose))

    @property
    def rate(self) -> float:
        """The share of unseen people that lie above: the false alarms."""
        return self.rank / (self.num_people + 1)

    @property
    def ci95(self) -> tuple[float, float]:
        """Where the rate of this threshold lies, with 95 %."""
        low, high = stats.beta(self.rank, self.num_people + 1 - self.rank).ppf([0.025, 0.975])
        return float(low), float(high)

    def chance(self, num_copies: int, num: int) -> float:
        """The probability that so many of `num` images, or more, lie above if they are as unseen people are."""
        distribution = stats.betabinom(num, self.rank, self.num_people + 1 - self.rank)
        return float(distribution.sf(num_copies - 1))


def share(hits: int, num: int) -> dict[str, float | int | list[float]]:
    """A share with its exact 95 % interval (Clopper & Pearson 1934)."""
    interval = stats.binomtest(hits, num).proportion_ci(0.95, method="exact")
    return {"value": hits / num, "ci95": [float(interval.low), float(interval.high)], "hits": hits, "num": num}


def persons(found: Nearest, threshold: float, people: Sequence[str]) -> set[str]:
    """The training people of whom some query is a copy; an image that is nobody's is a person of its own."""
    return {people[i] or f"image {i}" for i in found.index[found.likeness > threshold].tolist()}


def mean_leaked(found: Nearest, threshold: float, people: Sequence[str], num: int, rounds: int = 100) -> float:
    """The mean number of training people of whom there is a copy among `num` queries, over random sets of these."""
    random = torch.Generator().manual_seed(0)
    chosen = [torch.randperm(len(found.index), generator=random)[:num] for _ in range(rounds)]
    each = (persons(Nearest(found.index[some], found.likeness[some]), threshold, people) for some in chosen)
    return sum(map(len, each)) / rounds


class DataCopying(NamedTuple):
    """C_T, and how many cells it is averaged over."""

    value: float
    cells: int


def data_copying(samples: Nearest, unseen: Nearest, training: Tensor) -> DataCopying:
    """C_T of samples and unseen images, which lie in the cells of their nearest training images (m d)."""
    from sklearn.cluster import KMeans  # slow to load, and every start would wait for it

    cells = torch.zeros(len(training), dtype=torch.long)
    if len(training) > NUM_CELLS:
        fitted = KMeans(NUM_CELLS, n_init=4, random_state=0).fit(training.double().numpy())
        cells = torch.from_numpy(fitted.labels_).long()
    counts = [cells[found.index].bincount(minlength=NUM_CELLS) for found in (samples, unseen)]
    if torch.stack(counts).min() < MIN_IN_CELL:
        cells = torch.zeros_like(cells)
    of_samples, of_unseen = cells[samples.index], cells[unseen.index]
    total, num = 0.0, int(cells.max()) + 1
    for cell in range(num):
        inside, outside = samples.likeness[of_samples == cell], unseen.likeness[of_unseen == cell]
        total += z_of_ranks(1 - inside, 1 - outside) * len(outside) / len(unseen.index)
    return DataCopying(total, num)


def z_of_ranks(a: Tensor, b: Tensor) -> float:
    """The z-score of the Mann-Whitney statistic: below 0 where values of a (n) are lower than those of b (m)."""
    n, m = len(a), len(b)
    ordered = b.sort().values
    below = torch.searchsorted(ordered, a) + torch.searchsorted(ordered, a, right=True)
    return (float(below.double().sum()) / 2 - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
