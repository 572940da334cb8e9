r"""An atlas of the training volumes that bends to what is known, for trainings too short to learn average anatomy.

At high noise the best denoiser of any data is nearly that of a Gaussian with the same mean and covariance (Wang &
Vastola 2024, "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models"), and a network
is slow to learn it: the shape of a head is spread over thousands of voxels that each say almost nothing. What the
network does not hear there it replaces by the mean, so its samples are too alike. Probabilistic principal
components (Tipping & Bishop 1999, section 3.2) give that denoiser in closed form:

    x = mean + W z + r,   z ~ N(0, I),   r ~ N(0, rho^2 I)

Given slices show x itself, noisy ones x_t / alpha_t = x + N(0, sigma_t^2 / alpha_t^2), so that with the precision
p_i = 1 / rho^2 or 1 / (rho^2 + sigma_t^2 / alpha_t^2) of slice i

    E[z | all slices] = (I + sum_i p_i W_i^T W_i)^-1 sum_i p_i W_i^T (y_i - mean_i)

The network sees mean + W z and adds to the prediction that follows from it, so it starts from the Gaussian's.
Neither the paper nor its port has any of this.

Shapes: b volumes, c channels, n slices, y x the plane, k modes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from einops import rearrange
from torch import Tensor

from lit_medgen.batch import PADDING, Condition
from lit_medgen.diffusion import Denoiser


@dataclass(frozen=True)
class Atlas:
    """A Gaussian model of volumes, as slices.

    Attributes:
        mean: c n y x.
        modes: k c n y x, the columns of W.
        residual: rho^2, the variance of a voxel that the modes leave.
    """

    mean: Tensor
    modes: Tensor
    residual: Tensor

    @classmethod
    def of(cls, volumes: Tensor, num_modes: int) -> Self:
        """From b c n y x, with at most b - 1 modes."""
        mean = volumes.mean(0)
        apart = (volumes - mean).flatten(1)
        # The eigenvectors of the small matrix of products between volumes give those of the covariance.
        products, weights = torch.linalg.eigh((apart @ apart.mT).double())
        variance = products.flip(0).clamp(min=0) / (len(volumes) - 1)
        residual = variance[num_modes:].sum() / (apart.shape[1] - num_modes)
        directions = torch.nn.functional.normalize(weights.flip(1)[:, :num_modes].mT.float() @ apart, dim=1)
        scale = (variance[:num_modes] - residual).clamp(min=0).sqrt().float()
        return cls(mean, (scale[:, None] * directions).view(num_modes, *mean.shape), residual.float())

    def to(self, device: torch.device) -> Atlas:
        """The same atlas on another device."""
        return Atlas(self.mean.to(device), self.modes.to(device), self.residual.to(device))

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def bent(self, known: Tensor, variance: Tensor, index: Tensor) -> Tensor:
        """mean + W E[z | known] at the slices of a set.

        Args:
            known: b c n y x, the slices with noise in them.
            variance: b n, of that noise.
            index: b n, which slices they are; `PADDING` where there is none.
        """
        place = index.clamp(min=0)
        mean = rearrange(self.mean[:, place], "c b n y x -> b (n c y x)", b=len(index))
        modes = rearrange(self.modes[:, :, place], "k c b n y x -> b k n (c y x)")
        precision = (index != PADDING) / (variance + self.residual)
        weighted = (modes * precision[:, None, :, None]).flatten(2)
        modes = modes.flatten(2)
        apart = rearrange(known, "b c n y x -> b (n c y x)") - mean
        identity = torch.eye(len(self.modes), device=known.device)
        z = torch.linalg.solve(identity + weighted @ modes.mT, weighted @ apart[..., None])
        bent = mean + (modes.mT @ z)[..., 0]
        return rearrange(bent, "b (n c y x) -> b c n y x", n=known.shape[2], c=known.shape[1], y=known.shape[3])


class AtlasDenoiser(Denoiser):
    """A denoiser of sets of slices whose network adds to what the atlas predicts; without one, a plain denoiser."""

    atlas: Atlas | None = None

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """b c n y x; condition gives image, observed and slice_index."""
        if self.atlas is None:
            return super().predict(x_t, t, condition)
        assert condition.image is not None
        assert condition.observed is not None
        assert condition.slice_index is not None
        self.atlas = self.atlas.to(x_t.device)
        alpha_t, sigma_t = self.process.coefficients(t, x_t)
        given = condition.observed[:, None, :, None, None]
        noisy = x_t / alpha_t
        variance = (sigma_t / alpha_t) ** 2
        bent = self.atlas.bent(
            torch.where(given, condition.image, noisy),
            variance.flatten(1) * ~condition.observed,
            condition.slice_index,
        )
        seen = replace(condition, image=torch.where(given, condition.image, bent))
        share = self.atlas.residual / (self.atlas.residual + variance)  # of what is left over that is no noise
        x = bent + share * (noisy - bent)
        return super().predict(x_t, t, seen) + self.target(x, x_t, t)
