r"""A Gaussian factor model of volumes as stacks of slices, and its posterior given some slices, noisy or not.

Principal components are its factors (Tipping & Bishop 1999, "Probabilistic Principal Component Analysis", section
3.2), but every voxel has a residual variance psi of its own, and residuals of neighbouring slices a correlation rho:

    x = mean + W z + r,   z ~ N(0, I),   r_i ~ N(0, psi_i),   corr(r_i, r_j) = rho^|i - j|

where i and j are slices, at one position of the plane; residuals at different positions are independent. Observed are
slices with noise of variance s in each (s = 0: the slice itself). With y the observed slices, u = (y - mean) /
sqrt(psi + s), M = W / sqrt(psi + s), a = sqrt(psi / (psi + s)) and C_ij = rho^|i - j|

    R = diag(a) C diag(a) + diag(1 - a^2)                   the correlation of y given z, n x n
    E[z | y] = (I + M^T R^-1 M)^-1 M^T R^-1 u
    E[x | y] = mean + W E[z | y] + sqrt(psi) C diag(a) R^-1 (u - M E[z | y])
    var[x | y, z] = psi (1 - diag(C diag(a) R^-1 diag(a) C))

Principal components fit the people they come from better than other people. So the model is cross-fitted: mean and
directions of W are also estimated without each fold of the people, and psi, rho and the scale of the factors are those
of people who were left out.

Shapes: b volumes, c channels, n slices, y x the plane, v voxels of the plane in all channels, k factors, f fits (the
first of all people, then one without each fold).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from einops import rearrange
from torch import Tensor

from lit_medgen.batch import PADDING, sent
from lit_medgen.seeds import SeededNoise

NUM_FOLDS = 4
"""Folds of the people, each left out once."""

MAX_CORRELATION = 0.95
"""Of the residuals of neighbouring slices: nearer to 1 the matrices of the posterior are ill-conditioned."""

UNSEEN_VARIANCE = 1e6
"""Noise variance of a slice that is not there."""

MIN_VARIANCE = 1e-4
"""Residual variance of a voxel, of images in [-1, 1]: one that is equal in all people may still differ in another."""


@dataclass(frozen=True)
class Posterior:
    """What a factor model infers from observed slices y; every attribute is b c n y x.

    Attributes:
        factor_mean: E[mean + W z | y], the part of E[x | y] that the factors explain.
        x: E[x | y].
        deviation: sqrt(var[x | y, z]), the standard deviation of x that observing y leaves, the factors being known.
        standardised_residual: x - factor_mean, in units of its own standard deviation.
    """

    factor_mean: Tensor
    x: Tensor
    deviation: Tensor
    standardised_residual: Tensor


@dataclass(frozen=True)
class FactorModel:
    """Gaussian factor models of volumes as stacks of slices, cross-fitted.

    Attributes:
        mean: f c n y x.
        loadings: f k c n y x, the columns of W.
        residual_variance: c n y x, psi.
        correlation: rho, of the residuals of neighbouring slices.
    """

    mean: Tensor
    loadings: Tensor
    residual_variance: Tensor
    correlation: float

    @classmethod
    def fit(cls, volumes: Tensor, num_factors: int) -> Self:
        """Fits volumes b c n y x, one of each person, with at most `max_factors` factors."""
        flat = volumes.flatten(1)
        left_out_of = torch.tensor([fit_without(person) for person in range(len(flat))])
        fits = range(left_out_of.max() + 1)
        means, directions = zip(*(_components(flat[left_out_of != fit], num_factors) for fit in fits), strict=True)
        residuals = torch.empty_like(flat)
        total_variance = torch.zeros(num_factors)
        for fit, mean, direction in zip(fits, means, directions, strict=True):
            deviations = flat[left_out_of == fit] - mean
            z = deviations @ direction.mT
            residuals[left_out_of == fit] = deviations - z @ direction
            total_variance += z.square().sum(0) / len(flat)
        residual_variance = residuals.square().mean(0).clamp(min=MIN_VARIANCE).view(volumes.shape[1:])
        deviation = residual_variance.sqrt()
        residuals = residuals.view(volumes.shape)
        products = (residuals[:, :, 1:] * residuals[:, :, :-1]).mean(0).sum()
        correlation = (products / (deviation[:, 1:] * deviation[:, :-1]).sum()).clamp(0, MAX_CORRELATION).item()
        # Not all variance along a direction is that of its factor: the residual has some there too.
        scaled = rearrange(directions[0].view(-1, *deviation.shape) * deviation, "k c n y x -> k (c y x) n")
        of_residual = (scaled @ _correlations(correlation, torch.arange(scaled.shape[2])) * scaled).sum((1, 2))
        scale = (total_variance - of_residual).clamp(min=0).sqrt()
        mean, loadings = torch.stack(means), torch.stack(directions) * scale[:, None]
        mean, loadings = (values.unflatten(-1, volumes.shape[1:]) for values in (mean, loadings))
        return cls(mean, loadings, residual_variance, correlation)

    @classmethod
    def blank(cls, num_factors: int, shape: tuple[int, ...]) -> Self:
        """A model of volumes of this shape, c n y x, that was fitted to nobody."""
        fits = NUM_FOLDS + 1
        return cls(torch.zeros(fits, *shape), torch.zeros(fits, num_factors, *shape), torch.ones(shape), 0.5)

    @property
    def num_factors(self) -> int:
        """Number of factors, k."""
        return self.loadings.shape[1]

    def to(self, device: torch.device) -> FactorModel:
        """The same model on another device."""
        mean, loadings, variance = (sent(each, device) for each in (self.mean, self.loadings, self.residual_variance))
        return replace(self, mean=mean, loadings=loadings, residual_variance=variance)

    def sample(self, noise: SeededNoise) -> Tensor:
        """b c n y x: x = mean + W z + r by the fit of all people, one volume for each stream of noise."""
        mean, loadings = self.mean[0], self.loadings[0]
        z, r = noise(loadings.shape[:1], like=mean), noise(mean.shape, like=mean)
        innovation = math.sqrt(1 - self.correlation**2)
        for i in range(1, r.shape[2]):  # an autoregressive process of order 1, whose correlations are powers of rho
            r[:, :, i] = self.correlation * r[:, :, i - 1] + innovation * r[:, :, i]
        return mean + torch.einsum("bk,kcnyx->bcnyx", z, loadings) + self.residual_variance.sqrt() * r

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def posterior(self, observed: Tensor, variance: Tensor, index: Tensor, fit: Tensor | None = None) -> Posterior:
        """Infers volumes from sets of their slices.

        Args:
            observed: b c n y x, the slices with noise in them.
            variance: b n, of that noise.
            index: b n, which slices they are; `PADDING` where there is none.
            fit: b, the fit to use for each volume (`fit_without`); None: that of all people.
        """
        slices = index.clamp(min=0)
        fits = torch.zeros_like(index) if fit is None else fit[:, None].expand_as(index)
        mean = rearrange(self.mean[fits, :, slices], "b n c y x -> b (c y x) n")
        loadings = rearrange(self.loadings[fits, :, :, slices], "b n k c y x -> b (c y x) n k")
        psi = rearrange(self.residual_variance[:, slices], "c b n y x -> b (c y x) n")
        noise = variance.masked_fill(index == PADDING, UNSEEN_VARIANCE)[:, None]
        scale = (psi + noise).sqrt()
        a = psi.sqrt() / scale
        c_ij = _correlations(self.correlation, slices)[:, None]
        r = a[..., None] * c_ij * a[..., None, :] + torch.diag_embed(1 - a**2)
        root = _result_or_nan(*torch.linalg.cholesky_ex(r))  # b v n n
        u = (rearrange(observed, "b c n y x -> b (c y x) n") - mean) / scale
        # M, u and diag(a) C, all divided by the root of R.
        whitened = torch.linalg.solve_triangular(
            root, torch.cat([loadings / scale[..., None], u[..., None], a[..., None] * c_ij], dim=-1), upper=False
        )
        m, u, ac = whitened.split([self.num_factors, 1, index.shape[1]], dim=-1)
        m_flat, identity = m.flatten(1, 2), torch.eye(self.num_factors, device=observed.device)
        z = _result_or_nan(*torch.linalg.solve_ex(identity + m_flat.mT @ m_flat, m_flat.mT @ u.flatten(1, 2)))[:, None]
        factor_mean = mean + (loadings @ z)[..., 0]
        explained = ac.square().sum(-2)
        residual = (ac.mT @ (u - m @ z))[..., 0]  # relative to sqrt(psi)
        deviation = (psi * (1 - explained)).clamp(min=0).sqrt()
        parts = factor_mean, factor_mean + psi.sqrt() * residual, deviation, residual / explained.sqrt()
        c, y = observed.shape[1], observed.shape[3]
        return Posterior(*(rearrange(part, "b (c y x) n -> b c n y x", c=c, y=y) for part in parts))


def fit_without(person: int) -> int:
    """Index of the fit that this person's fold was left out of, by the person's number among the training people."""
    return 1 + person % NUM_FOLDS


def max_factors(num_people: int) -> int:
    """The largest number of factors for so many people, a fold of them left out; below 0: too few for any model."""
    return num_people - math.ceil(num_people / NUM_FOLDS) - 1


def _components(flat: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The mean of b v, and the leading principal directions, unit vectors: num v."""
    mean = flat.mean(0)
    deviations = flat - mean
    # The eigenvectors of the small matrix of products between volumes give those of the covariance.
    _, weights = torch.linalg.eigh((deviations @ deviations.mT).double())
    return mean, torch.nn.functional.normalize(weights.flip(1)[:, :num].mT.float() @ deviations, dim=1)


def _correlations(correlation: float, slices: Tensor) -> Tensor:
    """... n n: correlation^|i - j| of slices with indices ... n."""
    distance = (slices[..., :, None] - slices[..., None, :]).abs()
    powers: Tensor = correlation**distance
    return powers


def _result_or_nan(result: Tensor, failed: Tensor) -> Tensor:
    """A result of linear algebra, ... n m, NaN where it failed, ...; to raise instead would wait for the device."""
    return result.masked_fill(failed[..., None, None] != 0, torch.nan)
