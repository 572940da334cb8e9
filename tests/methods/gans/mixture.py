"""Two kinds of 8 x 8 images, and a loop in which the players of a GAN learn them by themselves, in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_medgen.batch import Batch, Condition
from lit_medgen.methods.gans.gan import GAN
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import parameters_of

SHARES = (0.7, 0.3)
NOISE = 0.1
"""Standard deviation of each pixel around its kind."""


def kinds() -> Tensor:
    """The means: a bright upper half, and a bright cross; 2 1 8 8."""
    image = torch.full((2, 1, 8, 8), -0.7)
    image[0, :, :4] = 0.7
    image[1, :, :, 3:5] = image[1, :, 3:5] = 0.7
    return image


def mixture(num: int) -> Tensor:
    """Images of the mixture, num 1 8 8, drawn from torch's generator."""
    kind = (torch.rand(num) > SHARES[0]).long()
    return kinds()[kind] + NOISE * torch.randn(num, 1, 8, 8)


def as_batch(image: Tensor) -> Batch:
    """A batch of these images, b 1 8 8, with label maps of one class."""
    keys = [str(n) for n in range(len(image))]
    return Batch(image, keys, torch.eye(4).expand(len(image), 4, 4), one_class(len(image)))


def one_class(num: int) -> Condition:
    """Label maps of one class, num 1 8 8, for methods that read such."""
    return Condition(label_map=torch.zeros(num, 1, 8, 8, dtype=torch.long))


def hold(optimizers: Sequence[torch.optim.Optimizer], learning: int) -> None:
    """Lets the parameters of one optimizer learn and no others."""
    for number, optimizer in enumerate(optimizers):
        for parameter in parameters_of(optimizer):
            parameter.requires_grad_(number == learning)


def learn(model: GAN, num_batches: int, size: int = 32) -> None:
    """Trains the players as `Adversarial.training_step` does, each in its turns, on batches of the mixture."""
    optimizers, _ = model.train().configure_optimizers()
    for number in range(num_batches):
        torch.manual_seed(number)
        batch = as_batch(mixture(size))
        for turn, (player, optimizer) in enumerate(zip(model.players(), optimizers, strict=True)):
            if player.moves(number):
                hold(optimizers, turn)
                losses = player.loss(batch)
                losses[f"{player.name}_loss" if turn else "loss"].backward()
                optimizer.step()
                optimizer.zero_grad()


@torch.no_grad()
def found(model: Generator, num: int = 256) -> tuple[float, float]:
    """The share of samples nearer to the first kind, and their mean distance from the nearer one (root mean square)."""
    samples = model.eval().sample(one_class(num), list(range(num)))
    distances = (samples[:, None] - kinds()).square().mean((2, 3, 4)).sqrt()  # num 2
    return float((distances[:, 0] < distances[:, 1]).float().mean()), float(distances.min(1).values.mean())
