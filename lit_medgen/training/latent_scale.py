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
from lit_medgen.diffusion.gaussian import broadcast
from lit_medgen.diffusion.schedules import Schedule
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

        All processes call this, in `on_fit_start`, and take what the first one measures, which it says. InputError for
        a channel that is constant or not finite.

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
        say("latents: " + ", ".join(f"{name} {value:.4g}" for name, value in self.values().items()))

    def values(self) -> dict[str, float]:
        """What is logged: `shift` and `scale`, or of one for each channel the least and the largest."""
        found = {name: getattr(self, name).tolist() for name in ("shift", "scale")}
        if len(self.scale) == 1:
            return {name: values[0] for name, values in found.items()}
        return {f"{name}_{end.__name__}": end(values) for name, values in found.items() for end in (min, max)}

    def log(self, trainer: L.Trainer) -> None:
        """Logs these as `latent/scale` and so on, once; for `on_train_start`, as a run drops what was logged before."""
        for logger in trainer.loggers if trainer.global_step == 0 else []:
            logger.log_metrics({f"latent/{name}": value for name, value in self.values().items()}, trainer.global_step)


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
    device, num = first_stage.device, 0
    total = torch.zeros(3, first_stage.latent_shape[0], dtype=torch.float64, device=device)
    for piece in pieces:
        kept = sent(piece, device)
        variance, mean = torch.var_mean(first_stage.latents(kept).double().flatten(2), dim=2, correction=0)  # b d
        noise = first_stage.variance(kept).double().flatten(2).mean(2) if sample else torch.zeros_like(mean)
        total += torch.stack([mean, mean.square() + variance, noise]).sum(1)
        num += len(kept)
    mean, square, noise = total / num if per_channel else (total / num).mean(1)
    return mean, (square - mean.square() + noise).clamp(min=0).sqrt()


def at_scale(
    z_t: Tensor, t: Tensor, schedule: Schedule, theirs: LatentScale, ours: LatentScale
) -> tuple[Tensor, Tensor]:
    """Noisy latents of one scale as those of another, b d *z, and the times of equal log-SNR, b.

    With latents u = m + k z there and u = m' + k' z' here, z_t = (alpha_t k' / k) z' + alpha_t (m' - m) / k +
    sigma_t eps: after a shift they are ours but for a factor, at the time whose log-SNR is greater by 2 log(k' / k).
    Exact, except beyond the ends of the schedule, where that time is its end.

    Args:
        z_t: noisy latents, normalised with their scale, b d *z.
        t: their times, b.
        schedule: that of both.
        theirs: how they are normalised; ValueError if each channel has a scale of its own, so that no time is right for
            all of them.
        ours: how they shall be.
    """
    if len(theirs.scale) > 1 or len(ours.scale) > 1:
        raise ValueError("latent_scale is channel; a model that is guided by a classifier needs global.")
    ratio = ours.scale / theirs.scale
    alpha_t, sigma_t = schedule.alpha_sigma(t)
    time = schedule.time(schedule.log_snr(t) + 2 * ratio.log())
    alpha, sigma = schedule.alpha_sigma(time)
    factor = torch.hypot(alpha, sigma) / torch.hypot(alpha_t * ratio, sigma_t)
    shift = alpha_t * (theirs.shift - ours.shift) / theirs.scale
    return broadcast(factor, z_t) * (z_t + broadcast(shift, z_t)), time


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
