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
from typing import Protocol

import torch
from torch import Tensor

from lit_medgen.metrics.base import TwoSampleMetric
from lit_medgen.metrics.frechet import frechet_distance, frechet_without
from lit_medgen.metrics.kernel import unbiased_mmd

NUM_NEIGHBOURS = 5


class Features(Protocol):
    """What turns images into features."""

    @property
    def name(self) -> str:
        """Network, hash and view, for the report."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """n c *s in [-1, 1] -> n d."""
        ...


class FeatureMetric(TwoSampleMetric):
    """A score of features.

    Args:
        extract: gives them.
    """

    def __init__(self, extract: Features) -> None:
        super().__init__()
        self.extract, self.features = extract, extract.name

    def statistics(self, samples: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Features of every image, float64."""
        return {"x": self.known(features_of, self.extract, samples), "y": self.known(features_of, self.extract, real)}


class FrechetDistance(FeatureMetric):
    """Distance of the two Gaussians with the features' means and covariances; 0 for the same."""

    limits = (0.0, float("inf"))
    conservative = True

    def statistics(self, samples: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Features of every image; says so in `features` if there are too few images for a covariance."""
        statistics = super().statistics(samples, real)
        people, dimensions = min(len(samples), len(real)), statistics["x"].shape[1]
        rank = "" if dimensions < people else f"; rank-deficient: {dimensions} dimensions, {people} images"
        self.features = self.extract.name + rank
        return statistics

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        return float(frechet_distance(statistics["x"][x], statistics["y"][y]))

    def without_each(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The scores without each person, from one decomposition."""
        num_x, num_y = x.bincount(), y.bincount()
        if (num_x != num_x[0]).any() or (num_y != num_y[0]).any():
            return super().without_each(statistics, x, y)
        a, b = statistics["x"], statistics["y"]
        return frechet_without(a, b, int(num_x[0])), frechet_without(b, a, int(num_y[0]))


class KernelDistance(FeatureMetric):
    """Unbiased polynomial MMD over all pairs (not averaged over subsets, as public code does to save memory)."""

    conservative = True

    def statistics(self, samples: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Kernel matrices."""
        x, y = super().statistics(samples, real).values()
        return {name: (a @ b.T / a.shape[1] + 1) ** 3 for name, a, b in (("xx", x, x), ("yy", y, y), ("xy", x, y))}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        return unbiased_mmd(statistics, x, y)


class Classifies(Features, Protocol):
    """Features of a network that also names classes."""

    def probabilities(self, images: Tensor) -> Tensor:
        """n c *s in [-1, 1] -> n k."""
        ...


class InceptionScore(TwoSampleMetric):
    """How sure a classifier is of each sample, and of how many classes samples are; over all, not averaged over splits.

    Args:
        classifier: gives the probabilities.
    """

    of_one_set = True
    limits = (1.0, float("inf"))

    def __init__(self, classifier: Classifies) -> None:
        super().__init__()
        self.classifier, self.features = classifier, classifier.name

    def statistics(self, samples: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Probabilities for every sample, float64."""
        return {"x": self.known(self.classifier.probabilities, samples).double()}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x."""
        p = statistics["x"][x]
        return float((torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))).sum(1).mean().exp())


class _Neighbours(FeatureMetric):
    """A score of distances.

    Args:
        extract: gives the features.
        num_neighbours: k.
    """

    limits = (0.0, 1.0)
    conservative = True

    def __init__(self, extract: Features, num_neighbours: int = NUM_NEIGHBOURS) -> None:
        super().__init__(extract)
        self.num_neighbours = num_neighbours
        self.features = f"{extract.name}, {num_neighbours} neighbours"

    def statistics(self, samples: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Distances of all pairs."""
        x, y = super().statistics(samples, real).values()
        return {name: self.known(_apart, a, b) for name, a, b in (("xx", x, x), ("yy", y, y), ("xy", x, y))}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        reach = {name: self._reach(statistics[name][i][:, i]) for name, i in (("xx", x), ("yy", y))}
        return float(self.of(statistics["xy"][x][:, y], reach["xx"], reach["yy"]))

    @abstractmethod
    def of(self, apart: Tensor, reach_x: Tensor, reach_y: Tensor) -> Tensor:
        """From the distances of samples (rows) and real images, and the distance of each one's k-th neighbour."""

    def _reach(self, apart: Tensor) -> Tensor:
        return apart.kthvalue(self.num_neighbours + 1).values  # the nearest is the image itself


class Precision(_Neighbours):
    """Share of samples that look real."""

    def of(self, apart: Tensor, reach_x: Tensor, reach_y: Tensor) -> Tensor:
        """From distances and reaches."""
        return (apart <= reach_y).any(dim=1).double().mean()


class Recall(_Neighbours):
    """Share of real images that the model could have made."""

    def of(self, apart: Tensor, reach_x: Tensor, reach_y: Tensor) -> Tensor:
        """From distances and reaches."""
        return (apart <= reach_x[:, None]).any(dim=0).double().mean()


class Density(_Neighbours):
    """How densely samples lie among real images; 1 as real ones do, and it may be more."""

    limits = (0.0, float("inf"))
    conservative = False

    def of(self, apart: Tensor, reach_x: Tensor, reach_y: Tensor) -> Tensor:
        """From distances and reaches."""
        return (apart <= reach_y).double().sum(dim=1).mean() / self.num_neighbours


class Coverage(_Neighbours):
    """Share of real images that have a sample near them."""

    def of(self, apart: Tensor, reach_x: Tensor, reach_y: Tensor) -> Tensor:
        """From distances and reaches."""
        return (apart.amin(dim=0) <= reach_y).double().mean()


def features_of(extract: Features, images: Tensor) -> Tensor:
    """n d, float64."""
    return extract(images).double()


def _apart(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
