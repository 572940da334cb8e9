"""What networks are trained to predict of an image, for `utility`: a category, a number, the class of every voxel.

A task makes the network, the loss, and of every tested image the numbers that its scores are made of, so that scores
of all images but one person's cost no second pass. Shapes: n images, c channels, *s their axes, k classes, d numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.metrics.agreement import AgreementMetric, MeanAbsoluteError
from lit_medgen.metrics.skill import AreaUnderROC, ExplainedVariance
from lit_medgen.networks.gans.convolutional import ConvEncoder
from lit_medgen.networks.gans.sizes import MIN_SIDE, Halvings
from lit_medgen.networks.segmenter import ConvSegmenter

LABEL_MAP = "label_map"
"""The name of the task of predicting label maps."""
MAX_VOXELS = 2**14
"""Of what a classifier sees: larger images become means over blocks, until they are 128 x 128 or 25 x 25 x 25."""
CHANNELS = 8
"""Width of the networks at their finest level."""


class UnfitTaskError(InputError):
    """The data or the samples have too little of what is to be predicted; other tasks may be fit."""


@dataclass(frozen=True)
class Score:
    """A score of a task.

    Attributes:
        name: in reports, such as `auc`.
        limits: its range.
        higher: whether more is better.
    """

    name: str
    limits: tuple[float, float]
    higher: bool = True


class Task(ABC):
    """What is to be predicted of images.

    Args:
        name: of the attribute, or `LABEL_MAP`.
        spec: of the images; UnfitTaskError for images too small for the networks.
    """

    kind: ClassVar[str]
    """What the report calls the network that is trained."""
    values: tuple[str, ...] = ()
    """Names of the k values of a target that is a category; empty for a number."""

    def __init__(self, name: str, spec: DataSpec) -> None:
        self.name, self.spec = name, spec
        if min(spec.size) < 2 * MIN_SIDE or not Halvings.of(self.size).num:
            raise UnfitTaskError(
                f"utility: images of {' x '.join(map(str, spec.size))} are too small for its networks; "
                f"take images whose sides are multiples of {2 * MIN_SIDE}."
            )

    @property
    @abstractmethod
    def scores(self) -> tuple[Score, ...]:
        """Its scores; the first leads."""

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along each axis of what the network sees."""
        return tuple(self.spec.size)

    def seen(self, images: Tensor) -> Tensor:
        """What the network sees of images, n c *s in [-1, 1] -> n c *t."""
        return images

    @abstractmethod
    def network(self) -> nn.Module:
        """An untrained network, from torch's default generator."""

    @abstractmethod
    def loss(self, found: Tensor, target: Tensor) -> Tensor:
        """A scalar, of what the network gives and of what it should predict."""

    @abstractmethod
    def outcomes(self, found: Tensor, target: Tensor) -> Tensor:
        """What scores are made of, n d in float64 on the CPU, from what the network gives."""

    @abstractmethod
    def constant(self, targets: Tensor, tested: Tensor) -> Tensor:
        """The outcomes, n d, of predicting the same of all images, the best that targets of training images say."""

    @abstractmethod
    def score(self, outcomes: Tensor) -> list[float]:
        """The value of each of `scores` of some images; NaN where they define none."""


class OfAttribute(Task):
    """Predicting a number of the whole image, which is seen as means over blocks."""

    @property
    def size(self) -> tuple[int, ...]:
        """The size of the image over the smallest whole factor that leaves at most `MAX_VOXELS`."""
        size, factor = self.spec.size, 1
        while math.prod(size) / factor ** len(size) > MAX_VOXELS and min(size) // (factor + 1) >= 2 * MIN_SIDE:
            factor += 1
        return tuple(side // factor for side in size)

    def seen(self, images: Tensor) -> Tensor:
        """Means over blocks, n c *t."""
        return images if self.size == tuple(self.spec.size) else functional.interpolate(images, self.size, mode="area")

    def network(self) -> nn.Module:
        """An encoder with a column for each value, or one for a number."""
        return ConvEncoder(self.size, self.spec.channels, max(len(self.values), 1), CHANNELS)


class Category(OfAttribute):
    """Predicting a category: cross-entropy, and the area under the ROC curve.

    Of more than two values the area is the mean over values of each against the rest, as scikit-learn's macro average.

    Args:
        name: of the attribute.
        spec: of the images.
        scored: numbers of the values that count in the score.
    """

    kind = "classifier"

    def __init__(self, name: str, spec: DataSpec, scored: Sequence[int] = ()) -> None:
        super().__init__(name, spec)
        self.values = values_of(spec, name)
        self.scored = tuple(scored or range(len(self.values)))
        self._area = AreaUnderROC()

    @property
    def scores(self) -> tuple[Score, ...]:
        """The area under the ROC curve."""
        return (Score("auc", (0.0, 1.0)),)

    def loss(self, found: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of logits n k and targets n."""
        return functional.cross_entropy(found, target.long())

    def outcomes(self, found: Tensor, target: Tensor) -> Tensor:
        """The target and the probability of each value, n 1+k."""
        return torch.cat([target[:, None].double(), found.double().softmax(1)], dim=1).cpu()

    def constant(self, targets: Tensor, tested: Tensor) -> Tensor:
        """The shares of the training images."""
        shares = torch.stack([(targets == value).double().mean() for value in range(len(self.values))])
        return torch.cat([tested[:, None].double(), shares.expand(len(tested), -1)], dim=1)

    def score(self, outcomes: Tensor) -> list[float]:
        """The mean area over the values that count, once for two."""
        values = self.scored[1:] if len(self.scored) == 2 else self.scored
        areas = [self._area.score((outcomes[:, 0] == value).double(), outcomes[:, 1 + value]) for value in values]
        return [float(torch.stack(areas).mean())]


class Number(OfAttribute):
    """Predicting a number: squared error, the share of the variance explained, and the mean absolute error.

    Args:
        name: of the attribute, whose range among training people scales it.
        spec: of the images.
    """

    kind = "regression"

    def __init__(self, name: str, spec: DataSpec) -> None:
        super().__init__(name, spec)
        self._metrics: tuple[AgreementMetric, ...] = ExplainedVariance(), MeanAbsoluteError()

    @property
    def scores(self) -> tuple[Score, ...]:
        """R^2 and the mean absolute error."""
        return Score("r2", (-math.inf, 1.0)), Score("mae", (0.0, math.inf), higher=False)

    def loss(self, found: Tensor, target: Tensor) -> Tensor:
        """Squared error of columns n 1 and targets n, in quarters of the training range."""
        low, high = self.spec.attributes[self.name]
        return functional.mse_loss(found[:, 0], (4 * (target - low) / (high - low) - 2).float())

    def outcomes(self, found: Tensor, target: Tensor) -> Tensor:
        """The target and the prediction, n 2, in the unit of the data."""
        low, high = self.spec.attributes[self.name]
        predicted = low + (high - low) * (found[:, 0].double() + 2) / 4
        return torch.stack([target.double(), predicted], dim=1).cpu()

    def constant(self, targets: Tensor, tested: Tensor) -> Tensor:
        """The mean of the training images."""
        return torch.stack([tested.double(), targets.double().mean().expand(len(tested))], dim=1)

    def score(self, outcomes: Tensor) -> list[float]:
        """R^2, and the mean absolute error in the unit of the data."""
        return [float(metric.score(outcomes[:, 0], outcomes[:, 1])) for metric in self._metrics]


class Segmentation(Task):
    """Predicting the class of every voxel: cross-entropy and soft Dice; Dice of each class in images that show it.

    The loss is the sum of both, as in Isensee et al. 2021 ("nnU-Net", Nature Methods).

    Args:
        spec: of the images.
        scored: numbers of the classes that count in the score.
    """

    kind = "segmenter"

    def __init__(self, spec: DataSpec, scored: Sequence[int] = ()) -> None:
        super().__init__(LABEL_MAP, spec)
        self.values = spec.classes
        self.scored = tuple(scored or range(1, len(self.values)))

    @property
    def scores(self) -> tuple[Score, ...]:
        """The mean over classes of Dice, and Dice of each where there are several."""
        single = [f"dice of {self.values[number]}" for number in self.scored]
        return tuple(Score(name, (0.0, 1.0)) for name in ("dice", *(single if len(single) > 1 else ())))

    def network(self) -> nn.Module:
        """A small U-Net of strided convolutions."""
        return ConvSegmenter(self.size, self.spec.channels, len(self.values), CHANNELS)

    def loss(self, found: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy plus 1 less the mean soft Dice of logits n k *s and classes n 1 *s."""
        classes = target[:, 0].long()
        shares, true = found.softmax(1), self._one_hot(classes).to(found)
        over = [0, *range(2, found.ndim)]
        overlap = (2 * (shares * true).sum(over) + 1) / (shares.sum(over) + true.sum(over) + 1)
        return functional.cross_entropy(found, classes) + 1 - overlap.mean()

    def outcomes(self, found: Tensor, target: Tensor) -> Tensor:
        """Dice of each class that counts, NaN in images that do not show it; n d."""
        return self._dice(found.argmax(1), target[:, 0].long()).cpu()

    def constant(self, targets: Tensor, tested: Tensor) -> Tensor:
        """The class that most training images have at a voxel."""
        most = self._one_hot(targets[:, 0].long()).sum(0).argmax(0)
        return self._dice(most.expand(len(tested), *most.shape), tested[:, 0].long())

    def _one_hot(self, classes: Tensor) -> Tensor:
        """n k *s, bool, of classes n *s."""
        numbers = torch.arange(len(self.values), device=classes.device)
        return classes[:, None] == numbers.view(-1, *[1] * (classes.ndim - 1))

    def _dice(self, found: Tensor, true: Tensor) -> Tensor:
        """2 |A B| / (|A| + |B|) of each class that counts (Dice 1945), NaN where it is not there; n d."""
        a, b = (self._one_hot(each)[:, list(self.scored)].flatten(2).double() for each in (found, true))
        there = b.sum(2)
        return torch.where(there > 0, 2 * (a * b).sum(2) / (a.sum(2) + there), torch.nan)

    def score(self, outcomes: Tensor) -> list[float]:
        """The mean Dice of images that show a class: over classes, then of each where there are several."""
        known = ~outcomes.isnan()
        each = torch.where(known, outcomes, 0.0).sum(0) / known.sum(0)
        return [float(each.mean()), *(each.tolist() if len(each) > 1 else ())]


def values_of(spec: DataSpec, name: str) -> tuple[str, ...]:
    """Names of the values 0, 1, ... of an attribute that is a category; empty for a number."""
    return spec.category_names.get(name) or (("0", "1") if name in spec.codes else ())
