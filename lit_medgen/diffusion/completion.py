r"""Completion: the rest of an image whose one region is given, by a diffusion model that was trained on whole images.

Where the image is given, its estimate x̂ is the image itself. So every sampler walks that region along noisy versions of
the image, and the rest is denoised beside it (Song et al. 2021, "Score-Based Generative Modeling through Stochastic
Differential Equations", appendix I.2, who replace x_t instead of x̂). Early steps see little of the region through its
noise, yet decide the rest, so a single walk agrees with the region less than a sample of the conditional distribution
does. `RePaint` (Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", algorithm 1
and section 4.2) goes back and forth: after each `jump` steps it adds the noise again,

    x_t = (alpha_t / alpha_s) x_s + sigma_t sqrt(1 - SNR_t / SNR_s) n,       n ~ N(0, I),

and walks the same steps once more, `resamplings` times in all. What differs from the paper: any of our samplers does
the steps, those nearest to pure noise are repeated as well, and the region stays on one noisy trajectory rather than
having new noise in every step.

Shapes: b images, c channels, *s their axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_medgen.batch import Condition
from lit_medgen.diffusion.denoisers import Denoises
from lit_medgen.diffusion.guidance import Guidance
from lit_medgen.diffusion.samplers import Ancestral, NoiseLevel, NoiseLike, Sampler, Walker


@dataclass(frozen=True)
class Completing(Guidance):
    """A denoiser that knows a region of the image; the outermost wrapper.

    Attributes:
        image: what is known, b c *s, read where `observed` is true.
        observed: b 1 *s, bool.
    """

    image: Tensor
    observed: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂: b c *s, the image itself where it is known, from x_t: b c *s and t: b."""
        return torch.where(self.observed, self.image.to(x_t.dtype), self.denoiser(x_t, t, condition))


class RePaint(Sampler):
    """Another sampler whose steps are walked several times, noise being added in between (Lugmayr et al. 2022).

    It serves completion; where nothing is given it samples the same model, at a multiple of the cost.

    Args:
        sampler: walks each part of the way; None: 250 steps of `Ancestral`, as in the paper.
        resamplings: how often each part is walked; 1 is the sampler itself.
        jump: steps of a part.
    """

    def __init__(self, sampler: Sampler | None = None, resamplings: int = 10, jump: int = 10) -> None:
        self.sampler = sampler or Ancestral(250)
        super().__init__(self.sampler.num_steps, self.sampler.spacing)
        for name, value in (("resamplings", resamplings), ("jump", jump)):
            if value < 1:
                raise ValueError(f"sampler.init_args.{name} is {value}; give at least 1.")
        self.resamplings, self.jump = resamplings, jump

    @property
    def divides_by_alpha(self) -> bool:  # type: ignore[override]
        """As of the sampler that walks."""
        return self.sampler.divides_by_alpha

    def invert(self, denoiser: Denoises, x: Tensor, level: float, condition: Condition | None = None) -> Tensor:
        """ValueError: noise that was added cannot be found again."""
        raise ValueError("sampler is RePaint, which adds noise; an inversion needs a sampler without noise, as DDIM.")

    def walk(self, walker: Walker, x: Tensor, grid: Tensor, noise: NoiseLike) -> Tensor:
        """x at grid[-1], from x at grid[0]."""
        for first in range(0, len(grid) - 1, self.jump):
            part = grid[first : first + self.jump + 1]
            t, s = next(walker.steps(torch.stack([part[0], part[-1]])))
            for again in range(self.resamplings):
                x = self.sampler.walk(walker, renoised(x, s, t, noise) if again else x, part, noise)
        return x


def renoised(x_s: Tensor, s: NoiseLevel, t: NoiseLevel, noise: NoiseLike) -> Tensor:
    """A sample of q(x_t | x_s) for s < t, b c *s."""
    fresh = -math.expm1(2 * (t.half_log_snr - s.half_log_snr))
    return t.alpha / s.alpha * x_s + t.sigma * math.sqrt(fresh) * noise(x_s)


def filled_in(image: Tensor, observed: Tensor) -> Tensor:
    """The image, b c *s, with its unknown voxels (observed: b 1 *s, bool) filled in smoothly from the known ones.

    Averages over known voxels at ever coarser scales (Burt 1988, "Moment Images, Polynomial Fit Filters and the Problem
    of Surface Interpolation"): the finest scale that knows anything says what stands there; 0 where no scale does.
    """
    weight = observed.to(image.dtype)
    known = torch.where(observed, image, 0)
    if max(image.shape[2:]) == 1:
        return known
    pool = F.avg_pool3d if image.ndim == 5 else F.avg_pool2d
    sides = [min(2, side) for side in image.shape[2:]]
    total, share = (pool(each, sides, ceil_mode=True) for each in (known, weight))
    coarse = filled_in(total / share.clamp(min=torch.finfo(image.dtype).tiny), share > 0)
    return torch.where(observed, image, F.interpolate(coarse, image.shape[2:], mode="nearest"))


def wholly_observed(observed: Tensor, size: tuple[int, ...]) -> Tensor:
    """b 1 *size, bool: the cells of a coarser grid all of whose voxels (observed: b 1 *s, bool) are known.

    Of a latent without axes, size (), that is b 1: whether all of an image is.
    """
    if not size:
        return observed.flatten(1).all(1, keepdim=True)
    pool = F.adaptive_max_pool3d if observed.ndim == 5 else F.adaptive_max_pool2d
    return pool((~observed).float(), size) == 0
