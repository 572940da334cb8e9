r"""An atlas of the training volumes that bends to what is known, for trainings too short to learn average anatomy.

At high noise the best denoiser of any data is nearly that of a Gaussian with the same mean and covariance (Wang &
Vastola 2024, "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models"), and a network
is slow to learn it: the shape of a head is spread over thousands of voxels that each say almost nothing. What the
network does not hear there it replaces by the mean, so its samples are too alike. A factor model, with principal
components as its factors (Tipping & Bishop 1999, section 3.2, but with a residual of its own at every voxel), has
that denoiser in closed form:

    x = mean + W z + r,   z ~ N(0, I),   r ~ N(0, psi),   psi diagonal

Given slices show x itself, noisy ones x_t / alpha_t = x + N(0, sigma_t^2 / alpha_t^2). With s the variance of that
noise at a voxel, 0 where it is given, and y what is seen there

    E[z | y] = (I + W^T P W)^-1 W^T P (y - mean),   P = 1 / (psi + s)
    E[x | y] = E[mean + W z | y] + psi P (y - E[mean + W z | y])

The network sees E[mean + W z | y] and, in place of x_t, by how many standard deviations y lies off it,
sqrt(P) (y - E[mean + W z | y]); it says by how many, sqrt(psi s P), x lies off E[x | y]. So what goes in and what comes
out has variance 1 at every noise level (the preconditioning of Karras et al. 2022, section 5, voxel by voxel).

Components fit the people they come from better than others, and a network that is trained on them learns a trust
that new people do not deserve. So the people are cross-fitted: while a person is trained on, the network sees an
atlas made without them and a quarter of the others; psi and the spread of z are those of people left out. Neither
the paper nor its port has any of this.

Shapes: b volumes, c channels, n slices, y x the plane, k modes, f atlases (the first of all people, then one
without each part of them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from einops import rearrange
from torch import Tensor

from lit_medgen.batch import PADDING, Condition
from lit_medgen.diffusion import Denoiser

NUM_PARTS = 4
"""Parts of the people, each left out once."""

LEAST_VARIANCE = 1e-4
"""Of a voxel, images being in [-1, 1]: where all training people are equal, a new one may still differ a little."""


@dataclass(frozen=True)
class Atlas:
    """Gaussian models of volumes, as slices.

    Attributes:
        mean: f c n y x.
        modes: f k c n y x, the columns of W.
        residual: c n y x, psi.
    """

    mean: Tensor
    modes: Tensor
    residual: Tensor

    @classmethod
    def of(cls, volumes: Tensor, num_modes: int) -> Self:
        """From b c n y x, one volume of each person, and at most `most_modes` of them."""
        flat = volumes.flatten(1)
        left_out = torch.tensor([without(person) for person in range(len(flat))])
        parts = range(left_out.max() + 1)
        means, directions = zip(*(_components(flat[left_out != part], num_modes) for part in parts), strict=True)
        residual, spread = torch.zeros_like(flat[0]), torch.zeros(num_modes)
        for part, mean, direction in zip(parts, means, directions, strict=True):
            apart = flat[left_out == part] - mean
            z = apart @ direction.mT
            residual += (apart - z @ direction).square().sum(0) / len(flat)
            spread += z.square().sum(0) / len(flat)
        residual.clamp_(min=LEAST_VARIANCE)
        scale = (spread - directions[0].square() @ residual).clamp(min=0).sqrt()
        mean, modes = torch.stack(means), torch.stack(directions) * scale[:, None]
        return cls(*(part.unflatten(-1, volumes.shape[1:]) for part in (mean, modes, residual)))

    def to(self, device: torch.device) -> Atlas:
        """The same atlas on another device."""
        return Atlas(self.mean.to(device), self.modes.to(device), self.residual.to(device))

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
        mean = rearrange(self.mean[which, :, place], "b n c y x -> b c n y x")
        modes = rearrange(self.modes[which, :, :, place], "b n k c y x -> b k (c n y x)")
        residual = rearrange(self.residual[:, place], "c b n y x -> b c n y x")
        noise = variance[:, None, :, None, None]
        precision = 1 / (residual + noise)
        seen = (precision * (index != PADDING)[:, None, :, None, None]).flatten(1)
        weighted = modes * seen[:, None]
        identity = torch.eye(modes.shape[1], device=known.device)
        z = torch.linalg.solve(identity + weighted @ modes.mT, weighted @ (known - mean).flatten(1)[..., None])
        bent = mean + (modes.mT @ z).view(mean.shape)
        apart = known - bent
        x = bent + residual * precision * apart
        return Posterior(bent, x, (residual * noise * precision).sqrt(), apart * precision.sqrt())


@dataclass(frozen=True)
class Posterior:
    """What an atlas makes of known slices y; b c n y x each.

    Attributes:
        bent: E[mean + W z | y].
        x: E[x | y].
        deviation: sqrt(psi s P), of x about its mean.
        surprise: sqrt(P) (y - bent).
    """

    bent: Tensor
    x: Tensor
    deviation: Tensor
    surprise: Tensor


class AtlasDenoiser(Denoiser):
    """A denoiser of sets of slices whose network adds to what the atlas predicts; without one, a plain denoiser."""

    atlas: Atlas | None = None

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, which: Tensor | None = None) -> Tensor:
        """b c n y x; condition gives image, observed and slice_index; which: b, the atlas for each."""
        if self.atlas is None:
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
            which,
        )
        seen = replace(condition, image=torch.where(given, condition.image, known.bent))
        return self.target(known.x + known.deviation * super().predict(known.surprise, t, seen), x_t, t)


def without(person: int) -> int:
    """Which atlas the given person of those it was made of is left out of."""
    return 1 + person % NUM_PARTS


def most_modes(people: int) -> int:
    """How many modes an atlas of so many people may have, every part left out once; below 0: it cannot be made."""
    return people - math.ceil(people / NUM_PARTS) - 1


def _components(flat: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The mean of b v, and the unit vectors along which they vary most: num v."""
    mean = flat.mean(0)
    apart = flat - mean
    # The eigenvectors of the small matrix of products between volumes give those of the covariance.
    _, weights = torch.linalg.eigh((apart @ apart.mT).double())
    return mean, torch.nn.functional.normalize(weights.flip(1)[:, :num].mT.float() @ apart, dim=1)
