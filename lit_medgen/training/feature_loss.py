"""`FeatureLoss`: a method whose loss compares features of images, which are learned or read before the first step."""

from __future__ import annotations

from torch import Tensor

from lit_medgen.batch import Batch, Images
from lit_medgen.metrics import PerceptualDistance
from lit_medgen.metrics.extractors import LEARNED, perceptual, untaught
from lit_medgen.training.method import Method

MAX_PEOPLE = 500
"""Most training people that features are learned from."""


class FeatureLoss(Method):
    """A method whose loss has a perceptual distance.

    A subclass sets `features`: `learned` from images of the training people, a TorchScript file, or `none`; and
    `perceptual_weight`, without which no features are needed.
    """

    features: str
    perceptual_weight: float

    def __init__(self, *arguments: object, **others: object) -> None:
        super().__init__(*arguments, **others)  # type: ignore[arg-type]
        self._perceptual: list[PerceptualDistance] = []  # in a list, so that its network is no part of this one

    def setup(self, stage: str) -> None:
        """Learns or loads the features, before the first step."""
        super().setup(stage)
        if stage not in ("fit", "validate", "test") or self.features == "none":
            return
        for first in (True, False):  # the first process of each machine learns them, the others read what it kept
            if first == (self.trainer.local_rank == 0):
                self.take_features()
            self.trainer.strategy.barrier("features")

    def take_features(self) -> None:
        """Learns the features from images of the training people, or loads them."""
        if self.perceptual_weight:
            cache = self.data.cache / "features"
            self._perceptual = [perceptual(self.features, self.seen_images(), cache).requires_grad_(False)]

    def rehearsed(self, batch: Batch) -> Batch:
        """Takes a network of the learned features' shape; one of a file is not there without it."""
        if self.perceptual_weight and self.features == LEARNED:
            self._perceptual = [untaught(batch.image.shape[1]).requires_grad_(False)]
        return super().rehearsed(batch)

    def seen_images(self) -> Tensor:
        """Images of the training people that features are learned from, one each, n c *s."""
        images: Images = self.data.images("train", one_per_person=True, limit=MAX_PEOPLE)
        return images.all()

    def perceptual_distance(self, made: Tensor, image: Tensor, share: float = 1.0) -> dict[str, Tensor]:
        """The mean distance of images and what they should be, b c *s, as "perceptual"; nothing without features.

        `share` is that of the slices of volumes, see `PerceptualDistance.distance`.
        """
        for distance in self._perceptual:
            if distance.device != self.device:
                distance.to(self.device)
        found = [distance.distance(made, image, share).mean() for distance in self._perceptual]
        return {"perceptual": found[0]} if found else {}
