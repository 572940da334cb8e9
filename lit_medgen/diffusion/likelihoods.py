r"""What a diffusion model with a bound says of an image, given its least noisy latent: log p(x | z_0), in nats.

A likelihood is called with the image and with what a decoder makes of z_0, a location for each pixel:

    Gaussian              the density of N(location, scale^2), or the probability of a grey value under it
    DiscretisedLogistic   the probability of a grey value under a logistic distribution of that location and scale
                          (Salimans et al. 2017, "PixelCNN++", eq. 1)
    Bernoulli             pixels are probabilities in [0, 1], locations are logits (Rguibi et al. 2023, section 2.4)

A grey value of 8-bit images takes the probability between the middles to its neighbours; the darkest and the brightest
take all beyond, so that the probabilities of all values sum to 1 and bits per dimension compare with those of a
lossless compressor. A density does not: its bits can be below 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

MIN_SCALE = 1e-4
"""Of a location, where values lie in [-1, 1]: a hundredth of a step of 8 bits."""


class Likelihood(nn.Module, ABC):
    """What log p(x | location) is; a module, as its scale may be learned."""

    is_discrete: bool = True
    """Whether it is a probability of values, which bits per dimension need to be compared with a compressor's."""

    @abstractmethod
    def forward(self, x: Tensor, location: Tensor, noise: Tensor) -> Tensor:
        """The log-likelihood log p(x | location) of each image, b, nats.

        Args:
            x: images b c *s in [-1, 1].
            location: what the decoder gives, b c *s.
            noise: sigma_0 / alpha_0, the noise in the location where it is z_0 / alpha_0 itself; without dimensions.
        """

    def image(self, location: Tensor) -> Tensor:
        """The image of a location, in [-1, 1]: b c *s."""
        return location.clamp(-1, 1)


class _OfLocationAndScale(Likelihood):
    """A distribution about each pixel's location.

    Args:
        num_values: grey values from -1 to 1, 256 of 8-bit images.
        scale: standard deviation about the location, in [-1, 1]; None: that of the noise in z_0, for a location that is
            z_0 / alpha_0 (Kingma et al. 2021, eq. 8), "learned": one parameter for all pixels.
    """

    def __init__(self, num_values: int | None = 256, scale: float | str | None = None) -> None:
        super().__init__()
        if num_values is not None and num_values < 2:
            raise ValueError(f"num_values is {num_values}; give at least 2 grey values.")
        if isinstance(scale, str) and scale != "learned":
            raise ValueError(f"scale is {scale!r}; give a number, 'learned', or leave it out for the noise of z_0.")
        if isinstance(scale, int | float) and not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale}; give a finite number above 0.")
        self.num_values, self.scale = num_values, scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(0.1))) if scale == "learned" else None

    def scale_of(self, noise: Tensor) -> Tensor:
        """The standard deviation, float64, without dimensions."""
        if self.log_scale is not None:
            found = self.log_scale.double().exp()
        else:
            found = noise.double() if self.scale is None else torch.full_like(noise, float(self.scale)).double()
        return found.clamp(min=MIN_SCALE)

    @abstractmethod
    def log_below(self, value: Tensor) -> Tensor:
        """The logarithm log F of the distribution with mean 0 and standard deviation 1, which is symmetric."""

    @abstractmethod
    def log_between(self, low: Tensor, high: Tensor) -> Tensor:
        """The logarithm log(F(high) - F(low)) for finite ends."""

    def log_mass(self, x: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        """The logarithm of the probability of each pixel's grey value, float64, b c *s."""
        assert self.num_values is not None
        step = 2 / (self.num_values - 1)
        value = ((x.double() + 1) / step).round()  # 0, 1, ..., which images of 8 bits are up to rounding
        low, high = (((value + side) * step - 1 - location) / scale for side in (-0.5, 0.5))
        # No infinite ends for the darkest and the brightest: their gradients would be NaN.
        mass = torch.where(value <= 0, self.log_below(high), self.log_between(low, high))
        return torch.where(value >= self.num_values - 1, self.log_below(-low), mass)


class DiscretisedLogistic(_OfLocationAndScale):
    """The probability of a grey value under a logistic distribution."""

    def __init__(self, num_values: int = 256, scale: float | str | None = None) -> None:
        super().__init__(num_values, scale)

    def forward(self, x: Tensor, location: Tensor, noise: Tensor) -> Tensor:
        """The log-likelihood of each image, b, nats."""
        return self.log_mass(x, location.double(), self.scale_of(noise)).flatten(1).sum(1)

    def log_below(self, value: Tensor) -> Tensor:
        """The logarithm log S(a) of the sigmoid, with standard deviation 1."""
        return logsigmoid(math.pi / math.sqrt(3) * value)

    def log_between(self, low: Tensor, high: Tensor) -> Tensor:
        """The logarithm log(S(b) - S(a)) = log S(b) + log S(-a) + log(1 - exp(a - b)), S being the sigmoid."""
        gap = math.pi / math.sqrt(3) * (high - low)
        return self.log_below(high) + self.log_below(-low) + torch.log(-torch.expm1(-gap))


class Gaussian(_OfLocationAndScale):
    """The probability of a grey value under a normal distribution; without grey values (None), its density."""

    def __init__(self, num_values: int | None = 256, scale: float | str | None = None) -> None:
        super().__init__(num_values, scale)
        self.is_discrete = num_values is not None

    def forward(self, x: Tensor, location: Tensor, noise: Tensor) -> Tensor:
        """The log-likelihood of each image, b, nats."""
        location, scale = location.double(), self.scale_of(noise)
        if self.num_values is not None:
            return self.log_mass(x, location, scale).flatten(1).sum(1)
        density = -0.5 * ((x.double() - location) / scale).square() - scale.log() - math.log(2 * math.pi) / 2
        return density.flatten(1).sum(1)

    def log_below(self, value: Tensor) -> Tensor:
        """The logarithm log Phi of the normal distribution."""
        found: Tensor = torch.special.log_ndtr(value)
        return found

    def log_between(self, low: Tensor, high: Tensor) -> Tensor:
        """The logarithm log(Phi(b) - Phi(a)), from the tail that is nearer, where nothing cancels."""
        right = low > 0
        low, high = torch.where(right, -high, low), torch.where(right, -low, high)
        upper = self.log_below(high)
        return upper + torch.log(-torch.expm1(self.log_below(low) - upper))


class Bernoulli(Likelihood):
    """Pixels are probabilities in [0, 1] and locations their logits; its bits are not those of grey values."""

    is_discrete = False

    def forward(self, x: Tensor, location: Tensor, noise: Tensor) -> Tensor:
        """The log-likelihood of each image, b, nats."""
        probability = ((x + 1) / 2).double()
        return -binary_cross_entropy_with_logits(location.double(), probability, reduction="none").flatten(1).sum(1)

    def image(self, location: Tensor) -> Tensor:
        """2 sigmoid(location) - 1."""
        return 2 * torch.sigmoid(location) - 1
