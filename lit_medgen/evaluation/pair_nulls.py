"""Nulls of pairs: images that stand in the place of outputs without a model, and that any model must be nearer than.

mean training image     of every paired task: knows the training people and nothing of the pair
source unchanged        where sources have the shape and the channels of images: translation of contrasts
others                  what a method says can be made of the sources, as `Generator.baselines`: interpolation
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.evaluation.nulls import mean_of

MEAN, SOURCE = "mean training image", "source unchanged"


@dataclass(frozen=True)
class PairNulls:
    """What makes the nulls of pairs.

    Attributes:
        train: images of the training people.
        baselines: what can be made of the sources of true images without a model, as `Generator.baselines` gives it.
        source: index of a test image -> its source, 1 c *s in [-1, 1], or None where it has none; None: sources are no
            images of this kind.
    """

    train: Images
    baselines: Callable[[Tensor], Mapping[str, Tensor]] = lambda images: {}
    source: Callable[[int], Tensor | None] | None = None

    @cached_property
    def mean(self) -> Tensor:
        """The mean training image, 1 c *s."""
        return mean_of(self.train)[None].float()

    def __call__(self, images: Tensor, targets: Sequence[int]) -> dict[str, tuple[list[int], Tensor]]:
        """Name -> the rows of true images that the null has an image for, and these images, n c *s in [-1, 1].

        Args:
            images: true images, b c *s in [-1, 1].
            targets: b, the index of each among the test images.
        """
        every = list(range(len(images)))
        found = {name: (every, simple) for name, simple in self.baselines(images).items()}
        if self.source:
            sources = [self.source(target) for target in targets]
            there = [(row, source) for row, source in enumerate(sources) if source is not None]
            if there:
                found[SOURCE] = [row for row, _ in there], torch.cat([source for _, source in there])
        return found | {MEAN: (every, self.mean.expand_as(images))}
