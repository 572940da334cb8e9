r"""Scores of features: Fréchet and kernel distance, inception score, precision and recall, density and coverage.

    Fréchet    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^1/2)           (Heusel et al. 2017, eq. 6)
    kernel     unbiased MMD^2, kernel (x . y / d + 1)^3                  (Binkowski et al. 2018, section 3; "KID")
    inception  exp(mean KL(p(class | x), mean of p(class | x)))          (Salimans et al. 2016, section 4)
    precision  share of samples within the k-th neighbour's distance of some real image, recall the same with the
               roles exchanged                                           (Kynkaanniemi et al. 2019, eqs. 1 and 2)
    density    (1 / k) mean number of real images within whose k-th neighbour's distance a sample lies,
    coverage   share of real images with a sample within theirs          (Naeem et al. 2020, eqs. 3 and 4)

`lit_medgen.metrics.frechet` says how the first is computed. A score is worth as much as its features; `features`
names them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.metrics.base import Best, LeftOut, TwoSampleMetric
from lit_medgen.metrics.frechet import frechet_distance, frechet_without
from lit_medgen.metrics.kernel import MMD
from lit_medgen.metrics.known import Known, as_images, blocks

NUM_NEIGHBOURS = 5


class Features(Protocol):
    """What turns images into features."""

    @property
    def name(self) -> str:
        """Network, hash and view, for the report."""

    def __call__(self, images: Tensor) -> Tensor:
        """n c *s in [-1, 1] -> n d."""


class FeatureMetric(TwoSampleMetric):
    """A score of the features of images.

    Args:
        extract: gives them.
        known: as of every `TwoSampleMetric`.
    """

    def __init__(self, extract: Features, known: Known | None = None) -> None:
        super().__init__(known)
        self.extract, self.features = extract, extract.name

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Features of every image, float64."""
        return {name: self.known(features_of, self.extract, z) for name, z in (("x", samples), ("y", real))}


class FrechetDistance(FeatureMetric):
    """Distance of the two Gaussians with the features' means and covariances; 0 for the same."""

    limits = (0.0, float("inf"))
    best = "lower"
    conservative = True

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Features of every image; says so in `features` if there are too few images for a covariance."""
        statistics = super().statistics(samples, real)
        people, dimensions = min(len(samples), len(real)), statistics["x"].shape[1]
        rank = "" if dimensions < people else f"; rank-deficient: {dimensions} dimensions, {people} images"
        self.features = self.extract.name + rank
        return statistics

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        return float(frechet_distance(statistics["x"][x], statistics["y"][y]))

    def without(self, statistics: dict[str, Tensor], left_out: Sequence[LeftOut], num: tuple[int, int]) -> Tensor:
        """The scores without some images, from one decomposition where they are all samples, or all real."""
        a, b = statistics["x"], statistics["y"]
        if all(len(x) and not len(y) for x, y in left_out):
            return frechet_without(a, b, [x for x, _ in left_out])
        if all(len(y) and not len(x) for x, y in left_out):
            return frechet_without(b, a, [y for _, y in left_out])
        return super().without(statistics, left_out, num)


class KernelDistance(FeatureMetric, MMD):
    """Unbiased polynomial MMD over all pairs (not averaged over subsets, as public code does to save memory)."""

    best = "lower"
    conservative = True

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Kernel matrices of samples, of real images, and of both against each other."""
        x, y = super().statistics(samples, real).values()
        return {name: (a @ b.T / a.shape[1] + 1) ** 3 for name, a, b in (("xx", x, x), ("yy", y, y), ("xy", x, y))}


class Classifies(Features, Protocol):
    """Features of a network that also names classes."""

    def probabilities(self, images: Tensor) -> Tensor:
        """n c *s in [-1, 1] -> n k."""


class InceptionScore(FeatureMetric):
    """How sure a classifier is of each sample, and of how many classes all are (not averaged over splits)."""

    extract: Classifies
    of_one_set = True
    best = "higher"
    limits = (1.0, float("inf"))

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Probabilities for every sample, float64."""
        return {"x": self.known(features_of, self.extract.probabilities, samples)}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x."""
        p = statistics["x"][x]
        return float((torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))).sum(1).mean().exp())


class _Neighbours(FeatureMetric):
    """A score of distances.

    Args:
        extract: gives the features.
        num_neighbours: k.
        known: as of every `TwoSampleMetric`.
    """

    limits = (0.0, 1.0)
    best: Best = "higher"
    conservative = True

    def __init__(self, extract: Features, num_neighbours: int = NUM_NEIGHBOURS, known: Known | None = None) -> None:
        super().__init__(extract, known)
        self.num_neighbours = num_neighbours
        self.features = f"{extract.name}, {num_neighbours} neighbours"

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Distances of all pairs."""
        x, y = super().statistics(samples, real).values()
        return {name: self.known(_apart, a, b) for name, a, b in (("xx", x, x), ("yy", y, y), ("xy", x, y))}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        # The nearest is the image itself.
        reach_x, reach_y = (
            statistics[name][i][:, i].kthvalue(self.num_neighbours + 1).values for name, i in (("xx", x), ("yy", y))
        )
        return float(self._of(statistics["xy"][x][:, y], reach_x, reach_y, len(x), len(y)))

    def without(self, statistics: dict[str, Tensor], left_out: Sequence[LeftOut], num: tuple[int, int]) -> Tensor:
        """The scores without some images: those left out are infinitely far from all others, and reach nothing."""
        apart, scores = statistics["xy"].clone(), []
        near_x = _reaches(statistics["xx"], self.num_neighbours, [x for x, _ in left_out])
        near_y = _reaches(statistics["yy"], self.num_neighbours, [y for _, y in left_out])
        for (x, y), reach_x, reach_y in zip(left_out, near_x, near_y, strict=True):
            apart[x], apart[:, y] = torch.inf, torch.inf
            scores.append(self._of(apart, reach_x, reach_y, num[0] - len(x), num[1] - len(y)))
            apart[x], apart[:, y] = statistics["xy"][x], statistics["xy"][:, y]
        return torch.stack(scores)

    @abstractmethod
    def _of(self, apart: Tensor, reach_x: Tensor, reach_y: Tensor, num_x: int, num_y: int) -> Tensor:
        """The score, float64, from distances (x y) and reaches (those of each one's k-th neighbour in its own set)."""


class Precision(_Neighbours):
    """Share of samples that look real: that are within the reach of a real image."""

    def _of(self, apart: Tensor, reach_x: Tensor, reach_y: Tensor, num_x: int, num_y: int) -> Tensor:
        return (apart <= reach_y).any(dim=1).double().sum() / num_x


class Recall(_Neighbours):
    """Share of real images that the model could have made: that are within the reach of a sample."""

    def _of(self, apart: Tensor, reach_x: Tensor, reach_y: Tensor, num_x: int, num_y: int) -> Tensor:
        return (apart <= reach_x[:, None]).any(dim=0).double().sum() / num_y


class Density(_Neighbours):
    """How densely samples lie among real images; 1 as real ones do, and it may be more.

    The number of real images in whose reach a sample lies, over the number of neighbours.
    """

    limits = (0.0, float("inf"))
    best = "real"  # samples in the densest regions alone have more than real images do
    conservative = False

    def _of(self, apart: Tensor, reach_x: Tensor, reach_y: Tensor, num_x: int, num_y: int) -> Tensor:
        return (apart <= reach_y).sum().double() / (num_x * self.num_neighbours)


class Coverage(_Neighbours):
    """Share of real images that have a sample near them: within their reach."""

    def _of(self, apart: Tensor, reach_x: Tensor, reach_y: Tensor, num_x: int, num_y: int) -> Tensor:
        return (apart.amin(dim=0) <= reach_y).double().sum() / num_y


def features_of(extract: Callable[[Tensor], Tensor], images: Tensor | Images) -> Tensor:
    """n d, float64 on the CPU: what a network gives of every image."""
    return torch.cat([extract(some).cpu().double() for some in blocks(as_images(images))])


def _apart(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _reaches(apart: Tensor, num_neighbours: int, groups: Sequence[Tensor]) -> Iterator[Tensor]:
    """For each group of images left out: n, the distance of each one's k-th neighbour among the others.

    That of an image left out is negative: it reaches nothing.
    """
    num = min(num_neighbours + 1 + max(map(len, groups)), len(apart))
    values, neighbours = apart.topk(num, largest=False)
    for group in groups:
        kept = torch.ones(len(apart), dtype=torch.bool)
        kept[group] = False
        nearer = (kept[neighbours].cumsum(1) <= num_neighbours).sum(1, keepdim=True)  # the nearest is the image itself
        reach = values.gather(1, nearer)[:, 0]
        reach[group] = -1
        yield reach
