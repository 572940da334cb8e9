r"""Reconstructions of noised data: the detector of what a diffusion model was not trained on.

Graham et al. "Denoising diffusion models for out-of-distribution detection". CVPRW 2023, section 3.2; with latents:
Graham et al. "Unsupervised 3D out-of-distribution detection with latent diffusion models". MICCAI 2023.

    x_t   = alpha_t x + sigma_t eps  at several t
    x'    = what a sampler makes of x_t
    error = mean |x - x'|^2

What differs from the paper: noise levels are even in log-SNR rather than in t, so that they mean the same for every
schedule; a few steps lead back from each of them, rather than a share of the 100 of PNDM; and of the two errors of the
paper the squared one is taken, as in its published code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion.denoisers import Denoises
from lit_medgen.diffusion.gaussian import GaussianProcess
from lit_medgen.diffusion.samplers import NoiseLike, Sampler, on_cpu

LOG_SNRS = (4.0, 2.4, 0.8, -0.8, -2.4, -4.0)
"""Noise levels: sigma / alpha from 0.14, where details are lost, to 7.4, where hardly more than brightness is left."""

DETECTION_STEPS = 6
"""Most steps of a sampler from each of these levels to data."""


def reconstructions(
    sampler: Sampler,
    denoiser: Denoises,
    x: Tensor,
    condition: Condition,
    noise: NoiseLike,
    log_snrs: Sequence[float] = LOG_SNRS,
) -> Iterator[Tensor]:
    """What a sampler makes of data, b d *z each, noised to each level in turn.

    Args:
        sampler: leads from each noise level back to data.
        denoiser: what it calls.
        x: the data, b d *z.
        condition: as the denoiser reads it.
        noise: standard normal noise, anew at each level, and of a stochastic sampler.
        log_snrs: the noise levels.
    """
    schedule = denoiser.schedule
    levels = on_cpu(schedule, schedule.time, torch.tensor(log_snrs, dtype=torch.float64)).clamp(schedule.t_min, 1)
    for level in levels.tolist():
        t = torch.full((len(x),), level, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        x_t = GaussianProcess(schedule).perturb(x, t, noise(x))
        yield sampler(denoiser, x_t, condition, noise, start=level)


def errors_by_level(errors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Name of each level -> the mean of its errors, b *s, over each of b images."""
    return {
        f"squared_error_log_snr_{level:g}": error.flatten(1).mean(1)
        for level, error in zip(LOG_SNRS, errors, strict=True)
    }
