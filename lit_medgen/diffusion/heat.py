r"""The heat equation as a forward process: blur by diffusion of heat, exact at every time.

Rissanen, Heinonen, Solin. "Generative Modelling with Inverse Heat Dissipation". ICLR 2023, equations 3 to 6.
With no flow through the borders (Neumann), the solution on a grid of n pixels is

    u(t) = V exp(-Lambda t) V^T u(0),    Lambda_k = (pi k / n)^2 along each axis,    V^T the orthonormal DCT-II

so blurring for s after t is blurring for s + t, the mean stays, and each cosine decays by itself. Axes separate, so the
blur of an image is a product with one small matrix along each axis, differentiable and on the image's device.

Blur is given as heat time t (pixels^2) or as the width sigma (pixels) of the Gaussian that blurs as much far from
borders: t = sigma^2 / 2. Discrete VQ-IHDM writes 24 to 0.5 without saying which; its listing takes t, IHDM's authors
take sigma. On the paper's 11 x 11 map, sigma = 24 leaves the mean alone (the slowest mode is damped to 6e-11), while
t = 24 leaves a seventh of that mode, so `units` must be given.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lit_medgen.batch import sent
from lit_medgen.diffusion.schedules import Table


def dct_matrix(length: int, like: Tensor) -> Tensor:
    """V^T, the orthonormal DCT-II: n n, row k the k-th cosine; on the device of `like`, float64."""
    index = torch.arange(length, dtype=torch.float64, device=like.device)
    matrix = torch.cos(math.pi / length * (index + 0.5) * index[:, None]) * math.sqrt(2 / length)
    matrix[0] /= math.sqrt(2)
    return matrix


def dissipate(images: Tensor, heat_time: Tensor) -> Tensor:
    """The images after heat has spread for a time, b in pixels^2: b c *s -> b c *s (eq. 6); time 0 changes nothing."""
    time = sent(heat_time, images.device).double()
    with torch.autocast(images.device.type, enabled=False):  # bf16 would add more noise than the process does
        for axis in range(2, images.ndim):
            length = images.shape[axis]
            cosines = dct_matrix(length, images)
            frequency = math.pi * torch.arange(length, dtype=torch.float64, device=images.device) / length
            decay = torch.exp(-(frequency**2) * time[:, None])
            operator = torch.einsum("ki,bk,kj->bij", cosines, decay, cosines).to(images.dtype)
            images = torch.einsum("bij,bj...->bi...", operator, images.movedim(axis, 1)).movedim(1, axis)
    return images


class BlurSchedule(nn.Module):
    """How much heat has spread at each of T levels; none at level 0, the min_blur at 1, the max_blur at T.

    Args:
        max_blur: at the last level; 24 in the paper.
        min_blur: at the first; 0.5 in the paper.
        num_levels: T; 200 in the paper. The levels between are spaced evenly in the logarithm (IHDM, section 3.3).
        units: what `max_blur` and `min_blur` are: "sigma", the Gaussian's width in pixels, or "time", heat time.
    """

    def __init__(
        self,
        max_blur: float = 24.0,
        min_blur: float = 0.5,
        num_levels: int = 200,
        units: Literal["sigma", "time"] = "sigma",
    ) -> None:
        super().__init__()
        if not 0 < min_blur <= max_blur:
            raise ValueError(
                f"schedule.init_args: min_blur is {min_blur} and max_blur is {max_blur}; give 0 < min_blur <= max_blur."
            )
        if num_levels < 1:
            raise ValueError(f"schedule.init_args.num_levels is {num_levels}; give at least 1.")
        self.num_levels = num_levels
        levels = torch.linspace(math.log(max_blur), math.log(min_blur), num_levels, dtype=torch.float64).exp().flip(0)
        times = levels**2 / 2 if units == "sigma" else levels
        self.heat_times = Table(torch.cat([torch.zeros(1, dtype=torch.float64), times]))

    def heat_time(self, level: Tensor) -> Tensor:
        """Heat time of levels 0 to T: b -> b, pixels^2, float64."""
        return self.heat_times.on(level.device).take(level)

    def sigma(self, level: Tensor) -> Tensor:
        """Width of the Gaussian that blurs as much: b -> b, pixels."""
        return (2 * self.heat_time(level)).sqrt()
