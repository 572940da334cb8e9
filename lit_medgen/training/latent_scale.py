"""The scale of latents, measured over the training images: a second stage's noise is of standard deviation 1.

Shapes: b batch, d latent channels, *z spatial axes of latents.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_medgen.batch import sent
from lit_medgen.errors import InputError
from lit_medgen.output import say
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.latents import LatentStore


class LatentScale(nn.Module):
    """Brings latents to mean 0 and standard deviation 1 over the training images, and back.

    Until it has measured any, latents stay as they are.

    Args:
        channels: of the latents, if each has a scale of its own; 1: one scale for all values (Rombach et al. 2022,
            "High-Resolution Image Synthesis with Latent Diffusion Models", appendix G).
    """

    shift: Tensor
    scale: Tensor
    measured: Tensor

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents of mean 0 and standard deviation 1, (z - shift) / scale, b d *z."""
        return (latents - self._wide(self.shift, latents)) / self._wide(self.scale, latents)

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`, shift + scale z, b d *z."""
        return self._wide(self.shift, latents) + self._wide(self.scale, latents) * latents

    @staticmethod
    def _wide(values: Tensor, latents: Tensor) -> Tensor:
        return values.view(-1, *[1] * (latents.ndim - 2))

    def measure(
        self, store: LatentStore, first_stage: FirstStage, keys: Iterable[str], trainer: L.Trainer, sample: bool = False
    ) -> None:
        """Takes mean and standard deviation of the latents of some records; those of a checkpoint stay.

        All processes call this and take what the first one measures, which is said and logged as `latent/shift` and
        `latent/scale`, or of many channels as the least and the largest. InputError for a channel that is constant or
        not finite.

        Args:
            store: what is kept of the images.
            first_stage: what made it.
            keys: of the training records.
            trainer: of the run.
            sample: whether the method samples latents; see `moments`.
        """
        if self.measured:
            return
        found: list[Any] = []
        if trainer.is_global_zero:
            found = [value.tolist() for value in moments(first_stage, store.pieces(keys), len(self.shift) > 1, sample)]
        shift, scale = (torch.tensor(value).view(-1) for value in trainer.strategy.broadcast(found))
        _refuse_constant(shift, scale)
        self.shift.copy_(shift)
        self.scale.copy_(scale)
        self.measured.fill_(True)
        values = {"shift": shift.tolist(), "scale": scale.tolist()}
        say("latents: " + ", ".join(f"{name} {' '.join(f'{each:.4g}' for each in of)}" for name, of in values.items()))
        for logger in trainer.loggers:
            logger.log_metrics(_few(values), step=0)


@torch.no_grad()
def moments(
    first_stage: FirstStage, pieces: Iterable[Tensor], per_channel: bool = False, sample: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of latents, each of no axes, or d if they are taken per channel; float64.

    Args:
        first_stage: gives the latents of what a store keeps.
        pieces: what a store keeps of all images, some at a time.
        per_channel: whether each channel has its own; else one for all values.
        sample: whether latents are sampled: then the variance of the encoder's distributions is part of theirs.
    """
    device, count = first_stage.device, 0
    total = torch.zeros(3, first_stage.latent_shape[0], dtype=torch.float64, device=device)
    for piece in pieces:
        kept = sent(piece, device)
        latents = first_stage.latents(kept).double()
        parts = [latents, latents.square(), first_stage.variance(kept).double() if sample else 0 * latents]
        total += torch.stack([part.transpose(0, 1).flatten(1).sum(1) for part in parts])
        count += latents[:, 0].numel()
    mean, square, noise = total / count if per_channel else (total / count).mean(1)
    return mean, (square - mean.square() + noise).clamp(min=0).sqrt()


def _refuse_constant(shift: Tensor, scale: Tensor) -> None:
    """InputError for latents that cannot be brought to a standard deviation of 1."""
    bad = [i for i, good in enumerate((shift.isfinite() & scale.isfinite() & (scale > 0)).tolist()) if not good]
    if bad:
        which = f"channels {bad} of the latents" if len(scale) > 1 else "the latents"
        raise InputError(
            f"model.init_args.first_stage: over the training images {which} have mean {shift[bad].tolist()} and "
            f"standard deviation {scale[bad].tolist()}, which must be finite and above 0; give a first stage that was "
            "trained longer, or one of fewer latent channels."
        )


def _few(values: dict[str, list[float]]) -> dict[str, float]:
    """Numbers to be logged: each, or of many the least and the largest."""
    few = {f"latent/{name}": of[0] for name, of in values.items() if len(of) == 1}
    many = {name: of for name, of in values.items() if len(of) > 1}
    return few | {f"latent/{name}_{end.__name__}": end(of) for name, of in many.items() for end in (min, max)}
