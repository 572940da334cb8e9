"""A method built on another of its kind, to any depth: what it holds, and what its checkpoint must hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition
from lit_medgen.methods import Generator
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.frozen import FrozenPart


class Link(Generator):
    """Scales images after all links below it did; the lowest has none below."""

    part: Link

    def __init__(self, part: str | None = None) -> None:
        super().__init__()
        self.scale, self.only_trained = nn.Parameter(torch.rand(())), nn.Linear(3, 3)
        self.dropout, self.brightest = nn.Dropout(0.5), torch.zeros(())
        if part:
            self.frozen_parts = {"part": FrozenPart(Path(part), Link, "fit --model toy_chain.Link")}

    def build(self) -> None:
        """A network whose shape follows from all links below."""
        self.network = nn.Linear(1, self.part.depth + 1)

    @property
    def depth(self) -> int:
        """Number of links below."""
        return self.part.depth + 1 if self.frozen_parts else 0

    def output(self, images: Tensor) -> Tensor:
        """b c *s -> b c *s; random in training, but for what is frozen."""
        below = self.part.output(images) + self.network.weight.sum() if self.frozen_parts else images
        return self.dropout(below) * self.scale

    def loss(self, batch: Batch) -> Tensor:
        """How far the output is from the image, and a fact of the data."""
        self.brightest = batch.image.max().cpu()
        return (self.output(batch.image) - batch.image).square().mean()

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Scaled noise."""
        return self.output(SeededNoise(seeds)((1, *self.needed_spec().size)).to(self.device))

    def facts(self) -> dict[str, Any]:
        """The brightest voxel of the last batch."""
        return {"brightest": self.brightest}

    def restore(self, facts: dict[str, Any]) -> None:
        """Takes it back."""
        self.brightest = facts["brightest"]

    def as_frozen_part(self) -> Self:
        """Without the layer that only training has."""
        del self.only_trained
        return self


class Guided(Link):
    """A link with a guide, which must have been trained on the same part."""

    def __init__(self, part: str, guide: str) -> None:
        super().__init__(part)
        self.frozen_parts["guide"] = FrozenPart(Path(guide), Link, "fit", trained_on=("part",))


class MayBeGuided(Link):
    """A link that a guide may be given to when it is trained, or only when it is loaded."""

    def __init__(self, part: str, guide: str | None = None, noise: float = 0.0) -> None:
        super().__init__(part)
        self.noise = noise
        if guide:
            how: dict[str, Any] = {"trained_on": ("part",), "same_noise": True, "late": True}
            self.frozen_parts["guide"] = FrozenPart(Path(guide), Link, "fit", **how)

    def output(self, images: Tensor) -> Tensor:
        """Shifted by what the guide makes of it, where there is one."""
        images = super().output(images)
        return images + self.guide.output(images) if "guide" in self.frozen_parts else images

    def facts(self) -> dict[str, Any]:
        """The noise levels besides."""
        return super().facts() | {"log_snr": torch.tensor([self.noise])}


class Stranger(Link):
    """Is no part of others, which want a plain `Link`; a link of it is refused."""


class Chooser(Link):
    """Built on strangers alone."""

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.frozen_parts = {"part": FrozenPart(Path(part), Stranger, "fit --model toy_chain.Stranger")}
