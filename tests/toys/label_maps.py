"""An image that is made from a label map."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lit_medgen.batch import Batch, Condition, DataSpec, sent
from lit_medgen.errors import InputError
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.generator import Generator


class Painter(Generator):
    """Paints each class of a label map, with some noise.

    Args:
        num_classes: of the label maps.
    """

    required = ("label_map",)

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(partial(torch.optim.Adam, lr=1e-2))
        self.num_classes, self.network = num_classes, nn.Conv3d(num_classes + 1, 1, 3, padding=1)

    def check_shape(self, shape: DataSpec) -> None:
        """InputError for another number of classes."""
        if len(shape.classes) != self.num_classes:
            raise InputError(f"model.init_args.num_classes is {self.num_classes}; the data has {len(shape.classes)}.")

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of the painting."""
        return (self.paint(batch.condition, torch.randn_like(batch.image)) - batch.image).square().mean()

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Paintings of the label maps."""
        assert condition.label_map is not None
        return self.paint(condition, sent(SeededNoise(seeds)(condition.label_map.shape[1:]), self.device))

    def paint(self, condition: Condition, noise: Tensor) -> Tensor:
        """Noise b 1 *s -> b 1 *s."""
        assert condition.label_map is not None
        classes = one_hot(condition.label_map[:, 0] + 1, self.num_classes + 1)[..., 1:].movedim(-1, 1)
        return self.network(torch.cat([classes.to(noise.dtype), noise], dim=1)).tanh()
