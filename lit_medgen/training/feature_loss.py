"""`FeatureLoss`: a method whose loss compares features of images, which are learned or read before the first step."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lit_medgen.batch import Batch, DataSpec, Images
from lit_medgen.metrics import PerceptualDistance
from lit_medgen.metrics.extractors import LEARNED, perceptual, untaught
from lit_medgen.metrics.torchscript import refuse_channels
from lit_medgen.training.method import Method

MAX_PEOPLE = 500
"""Most training people that features are learned from."""


class FeatureLoss(Method):
    """A method whose loss has a perceptual distance: its constructor says which, by `compare_features`."""

    def __init__(self, *arguments: object, **others: object) -> None:
        super().__init__(*arguments, **others)  # type: ignore[arg-type]
        self._perceptual: list[PerceptualDistance] = []  # in a list, so that its network is no part of this one

    def compare_features(self, features: str, weight: float, share: float) -> None:
        """Takes what the loss compares; ValueError for a share that is none.

        Args:
            features: `learned` from images of the training people, a TorchScript file, or `none`.
            weight: of the distance; without one no features are needed.
            share: of the slices of each view of volumes, more than 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"model.init_args.perceptual_share is {share}; give more than 0 and at most 1.")
        self.features, self.perceptual_weight, self.perceptual_share = features, weight, share

    def before_data(self, shape: DataSpec, resumed_from: Path | None) -> None:
        """InputError too for features of a file that are not of so many channels."""
        super().before_data(shape, resumed_from)
        if self.features not in (LEARNED, "none"):
            refuse_channels(shape.channels)

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

    def perceptual_distance(self, made: Tensor, image: Tensor) -> dict[str, Tensor]:
        """The mean distance of images and what they should be, b c *s, as "perceptual"; nothing without features."""
        for distance in self._perceptual:
            if distance.device != self.device:
                distance.to(self.device)
        found = [distance.distance(made, image, self.perceptual_share).mean() for distance in self._perceptual]
        return {"perceptual": found[0]} if found else {}
