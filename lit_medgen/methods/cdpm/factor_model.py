r"""An atlas of the training volumes that bends to what is known, for trainings too short to learn average anatomy.

At high noise the best denoiser of any data is nearly that of a Gaussian with the same mean and covariance (Wang &
Vastola 2024, "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models"), and a network
is slow to learn it: the shape of a head is spread over thousands of voxels that each say almost nothing. What the
network does not hear there it replaces by the mean, so its samples are too alike. A factor model, with principal
components as its factors (Tipping & Bishop 1999, section 3.2, but with a residual of its own at every voxel), has
that denoiser in closed form:

    x = mean + W z + r,   z ~ N(0, I),   r_i ~ N(0, psi_i),   corr(r_i, r_j) = rho^|i - j|

where i and j are slices, at one place of the plane; places are independent. (What neighbouring places share a 2D
network sees for itself; what neighbouring slices share it learns late, through attention alone.) Given slices show x
itself, noisy ones x_t / alpha_t = x + N(0, sigma_t^2 / alpha_t^2). With s the variance of that noise in a slice, 0
where it is given, y what is seen, u = (y - mean) / sqrt(psi + s), M = W / sqrt(psi + s), a = sqrt(psi / (psi + s))
and C_ij = rho^|i - j|

    R = diag(a) C diag(a) + diag(1 - a^2)                   the correlation of what is seen beside z, n x n
    E[z | y] = (I + M^T R^-1 M)^-1 M^T R^-1 u
    E[x | y] = mean + W E[z | y] + sqrt(psi) C diag(a) R^-1 (u - M E[z | y])
    var[x | y, z] = psi (1 - diag(C diag(a) R^-1 diag(a) C))

The network sees E[mean + W z | y] and, in place of x_t, by how many standard deviations E[x | y] lies off it; it says
by how many, of var[x | y, z], x lies off E[x | y]. So what goes in and what comes out has variance 1 at every
noise level (the preconditioning of Karras et al. 2022, section 5, voxel by voxel).

Components fit the people they come from better than others, and a network that is trained on them learns a trust
that new people do not deserve. So the people are cross-fitted: while a person is trained on, the network sees an
atlas made without them and a quarter of the others; psi, rho and the spread of z are those of people left out.
Neither the paper nor its port has any of this.

Shapes: b volumes, c channels, n slices, y x the plane, v its places in all channels, k modes, f atlases (the first
of all people, then one without each part of them).
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
from einops import rearrange
from torch import Tensor

from lit_medgen.batch import PADDING, Condition, sent
from lit_medgen.diffusion import Denoiser
from lit_medgen.errors import InputError
from lit_medgen.seeds import SeededNoise

NUM_PARTS = 4
"""Parts of the people, each left out once."""

MAX_CORRELATION = 0.95
"""Of neighbouring slices' residuals: nearer to 1 the matrices below lose their digits."""

UNSEEN = 1e6
"""Variance of the noise over a slice that is not there."""

MIN_VARIANCE = 1e-4
"""Of a voxel, images being in [-1, 1]: where all training people are equal, a new one may still differ a little."""


@dataclass(frozen=True)
class Atlas:
    """Gaussian models of volumes, as slices.

    Attributes:
        mean: f c n y x.
        modes: f k c n y x, the columns of W.
        residual: c n y x, psi.
        correlation: rho, of the residuals of neighbouring slices.
    """

    mean: Tensor
    modes: Tensor
    residual: Tensor
    correlation: float

    @classmethod
    def of(cls, volumes: Tensor, num_modes: int) -> Self:
        """From b c n y x, one volume of each person, and at most `max_modes` of them."""
        flat = volumes.flatten(1)
        left_out = torch.tensor([without(person) for person in range(len(flat))])
        parts = range(left_out.max() + 1)
        means, directions = zip(*(_components(flat[left_out != part], num_modes) for part in parts), strict=True)
        left = torch.empty_like(flat)
        spread = torch.zeros(num_modes)
        for part, mean, direction in zip(parts, means, directions, strict=True):
            apart = flat[left_out == part] - mean
            z = apart @ direction.mT
            left[left_out == part] = apart - z @ direction
            spread += z.square().sum(0) / len(flat)
        residual = left.square().mean(0).clamp(min=MIN_VARIANCE).view(volumes.shape[1:])
        deviation = residual.sqrt()
        left = left.view(volumes.shape)
        together = (left[:, :, 1:] * left[:, :, :-1]).mean(0).sum() / (deviation[:, 1:] * deviation[:, :-1]).sum()
        correlation = together.clamp(0, MAX_CORRELATION).item()
        # What lies along a direction is not the modes' alone: a part of it is residual.
        seen = rearrange(directions[0].view(-1, *residual.shape) * deviation, "k c n y x -> k (c y x) n")
        rest = (seen @ _powers(correlation, torch.arange(seen.shape[2])) * seen).sum((1, 2))
        scale = (spread - rest).clamp(min=0).sqrt()
        mean, modes = torch.stack(means), torch.stack(directions) * scale[:, None]
        mean, modes = (part.unflatten(-1, volumes.shape[1:]) for part in (mean, modes))
        return cls(mean, modes, residual, correlation)

    def to(self, device: torch.device) -> Atlas:
        """The same atlas on another device."""
        mean, modes, residual = (sent(part, device) for part in (self.mean, self.modes, self.residual))
        return replace(self, mean=mean, modes=modes, residual=residual)

    def sample(self, noise: SeededNoise) -> Tensor:
        """b c n y x: x = mean + W z + r of the atlas of all people, one for each stream of noise."""
        mean, modes = self.mean[0], self.modes[0]
        z, r = noise(modes.shape[:1], like=mean), noise(mean.shape, like=mean)
        fresh = math.sqrt(1 - self.correlation**2)
        for i in range(1, r.shape[2]):  # residuals of neighbouring slices, whose correlations are powers of rho
            r[:, :, i] = self.correlation * r[:, :, i - 1] + fresh * r[:, :, i]
        return mean + torch.einsum("bk,kcnyx->bcnyx", z, modes) + self.residual.sqrt() * r

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def posterior(self, known: Tensor, variance: Tensor, index: Tensor, which: Tensor | None = None) -> Posterior:
        """What the slices of a set say of the volume.

        Args:
            known: b c n y x, the slices with noise in them.
            variance: b n, of that noise.
            index: b n, which slices they are; `PADDING` where there is none.
            which: b, the atlas to use for each; None: that of all people.
        """
        place = index.clamp(min=0)
        which = torch.zeros_like(index) if which is None else which[:, None].expand_as(index)
        mean = rearrange(self.mean[which, :, place], "b n c y x -> b (c y x) n")
        modes = rearrange(self.modes[which, :, :, place], "b n k c y x -> b (c y x) n k")
        psi = rearrange(self.residual[:, place], "c b n y x -> b (c y x) n")
        # Padding is a slice seen through nothing but noise.
        noise = variance.masked_fill(index == PADDING, UNSEEN)[:, None]
        scale = (psi + noise).sqrt()
        gain = psi.sqrt() / scale
        near = _powers(self.correlation, place)[:, None]
        together = gain[..., None] * near * gain[..., None, :] + torch.diag_embed(1 - gain**2)
        root = _known_or_nan(*torch.linalg.cholesky_ex(together))  # b v n n
        u = (rearrange(known, "b c n y x -> b (c y x) n") - mean) / scale
        # Divided by the root of R: M, u and diag(a) C.
        whitened = torch.linalg.solve_triangular(
            root, torch.cat([modes / scale[..., None], u[..., None], gain[..., None] * near], dim=-1), upper=False
        )
        num, n = modes.shape[-1], len(index[0])
        white_modes, white_u, pull = whitened.split([num, 1, n], dim=-1)
        flat, identity = white_modes.flatten(1, 2), torch.eye(num, device=known.device)
        z = _known_or_nan(*torch.linalg.solve_ex(identity + flat.mT @ flat, flat.mT @ white_u.flatten(1, 2)))[:, None]
        bent = mean + (modes @ z)[..., 0]
        explained = pull.square().sum(-2)
        off = (pull.mT @ (white_u - white_modes @ z))[..., 0]
        x, standardised_residual = bent + psi.sqrt() * off, off / explained.sqrt()
        deviation = (psi * (1 - explained)).clamp(min=0).sqrt()
        c, y = known.shape[1], known.shape[3]
        return Posterior(
            *(
                rearrange(part, "b (c y x) n -> b c n y x", c=c, y=y)
                for part in (bent, x, deviation, standardised_residual)
            )
        )


def _powers(correlation: float, place: Tensor) -> Tensor:
    """... n n: correlation^|i - j| for slices at ... n places."""
    distance = (place[..., :, None] - place[..., None, :]).abs()
    powers: Tensor = correlation**distance
    return powers


def _known_or_nan(result: Tensor, failed: Tensor) -> Tensor:
    """A result of linear algebra, ... n m, NaN where it failed, ...; to raise instead would wait for the device."""
    return result.masked_fill(failed[..., None, None] != 0, torch.nan)


@dataclass(frozen=True)
class Posterior:
    """What an atlas makes of known slices y; b c n y x each.

    Attributes:
        bent: E[mean + W z | y].
        x: E[x | y].
        deviation: of x about that, sqrt(var[x | y, z]).
        standardised_residual: x - bent, relative to its standard deviation.
    """

    bent: Tensor
    x: Tensor
    deviation: Tensor
    standardised_residual: Tensor


class AtlasDenoiser(Denoiser):
    """A denoiser of sets of slices whose network adds to what the atlas predicts, if it takes an atlas."""

    atlas: Atlas | None = None
    which: Tensor | None = None

    def seeing(self, which: Tensor) -> Self:
        """The same denoiser, its parameters shared, with the atlas of each image: b."""
        self.atlas = self.atlas and self.atlas.to(which.device)
        other = copy(self)
        other.which = which
        return other

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """b c n y x; condition gives image, observed and slice_index."""
        if self.atlas is None:
            if getattr(self.network, "atlas", False):  # its channel would be `condition.image`: in training, the target
                raise InputError(
                    "model.init_args.network.init_args.atlas is true, but no atlas was made: `fit` makes it from the "
                    "training people and checkpoints keep it. Fit or load the model, or set atlas to false."
                )
            return super().predict(x_t, t, condition)
        assert condition.image is not None
        assert condition.observed is not None
        assert condition.slice_index is not None
        self.atlas = self.atlas.to(x_t.device)
        alpha_t, sigma_t = self.process.coefficients(t, x_t)
        given = condition.observed[:, None, :, None, None]
        known = self.atlas.posterior(
            torch.where(given, condition.image, x_t / alpha_t),
            ((sigma_t / alpha_t) ** 2).flatten(1) * ~condition.observed,
            condition.slice_index,
            self.which,
        )
        seen = replace(condition, image=torch.where(given, condition.image, known.bent))
        return self.target(known.x + known.deviation * super().predict(known.standardised_residual, t, seen), x_t, t)


def without(person: int) -> int:
    """Index of the atlas that was fitted without this person, by her number among the training people."""
    return 1 + person % NUM_PARTS


def max_modes(people: int) -> int:
    """How many modes an atlas of so many people may have, every part left out once; below 0: it cannot be made."""
    return people - math.ceil(people / NUM_PARTS) - 1


def _components(flat: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The mean of b v, and the unit vectors along which they vary most: num v."""
    mean = flat.mean(0)
    apart = flat - mean
    # The eigenvectors of the small matrix of products between volumes give those of the covariance.
    _, weights = torch.linalg.eigh((apart @ apart.mT).double())
    return mean, torch.nn.functional.normalize(weights.flip(1)[:, :num].mT.float() @ apart, dim=1)
