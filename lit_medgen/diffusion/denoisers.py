r"""Denoisers: a network, a schedule and a parametrisation, called as denoiser(x_t, t, condition) to give x̂.

Training minimises weight(t) |prediction - target|^2 where prediction and target are eps, v or x. Because

    |epŝ - eps|^2 = SNR |x̂ - x|^2,    |v̂ - v|^2 = (SNR + 1) |x̂ - x|^2,

the same weighting of x̂ has another form for each; `MinSNR` writes all three (Hang et al. 2023, "Efficient
Diffusion Training via Min-SNR Weighting Strategy", section 3.4).
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from lit_medgen.batch import Condition
from lit_medgen.diffusion.gaussian import GaussianProcess
from lit_medgen.diffusion.schedules import Schedule

Parametrisation = Literal["x", "eps", "v"]

GOLDEN_RATIO = (5**0.5 - 1) / 2


class Denoises(Protocol):
    """Anything a sampler can walk: a `Denoiser`, guidance around one, or an exact formula in a test."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂ of the shape of x_t; t: b."""
        ...


class UniformWeight:
    """Weight 1 on the predicted quantity: Ho et al. 2020, eq. 14 (L_simple) when it is eps."""

    def __call__(self, log_snr: Tensor, parametrisation: Parametrisation) -> Tensor:
        """Loss weight of each image from its log-SNR; b -> b."""
        return torch.ones_like(log_snr)


class MinSNR(UniformWeight):
    """min(SNR, gamma) as the weight of |x̂ - x|^2 (Hang et al. 2023, eq. 7), for each parametrisation.

    Args:
        gamma: the SNR above which all times count alike.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, log_snr: Tensor, parametrisation: Parametrisation) -> Tensor:
        """Loss weight of each image from its log-SNR; b -> b."""
        snr = log_snr.exp()
        weight = snr.clamp(max=self.gamma)
        return {"x": weight, "eps": weight / snr, "v": weight / (snr + 1)}[parametrisation]


class Denoiser(nn.Module):
    """A network that predicts eps, v or x, wrapped to give x̂.

    Args:
        network: called as network(x, t, condition), t: b in [0, 1]; returns the shape of x.
        schedule: the noise schedule.
        parametrisation: what the network's output means.
        clip: clamp x̂ to [-1, 1], the range of every image, when sampling (Ho et al. 2020's code).
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, parametrisation: Parametrisation = "eps", clip: bool = False
    ) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule
        self.process = GaussianProcess(schedule)
        self.parametrisation: Parametrisation = parametrisation
        self.clip = clip

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂: b c *s, float32 at least, from x_t: b c *s and t: b."""
        x = self.to_x(self.predict(x_t, t, condition).to(x_t.dtype), x_t, t)
        return x.clamp(-1, 1) if self.clip else x

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """eps, v or x, as trained."""
        prediction: Tensor = self.network(x_t, t, condition)
        return prediction

    def to_x(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's prediction as x̂."""
        match self.parametrisation:
            case "x":
                return prediction
            case "eps":
                return self.process.x_from_eps(prediction, x_t, t)
            case "v":
                return self.process.x_from_v(prediction, x_t, t)

    def target(self, x: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network should predict, given the data."""
        match self.parametrisation:
            case "x":
                return x
            case "eps":
                return self.process.eps_from_x(x, x_t, t)
            case "v":
                return self.process.v_from_x(x, x_t, t)


def stratified_times(num: int, total: int, first: int, offset: float, t_min: float) -> Tensor:
    """num times in [t_min, 1]: this rank's share of `total` evenly spread ones (Kingma et al. 2021, appendix I.1).

    Args:
        num: times wanted here.
        total: times over all ranks.
        first: place of this rank's first among all.
        offset: one draw from [0, 1), the same on all ranks.
        t_min: the least time.
    """
    place = (offset + (first + torch.arange(num, dtype=torch.float64)) / total) % 1
    return (t_min + (1 - t_min) * place).float()


def evaluation_times(image: Tensor, repeat: int, num_repeats: int, offset: float, t_min: float) -> Tensor:
    """A time in [t_min, 1] for each image, b -> b: one of `num_repeats` evenly spread ones that the image is seen at.

    Those of one image lie between those of the images before it, by the golden ratio, which leaves no large gap
    however many images there are. They depend on no batch size and on no number of ranks.

    Args:
        image: numbers of the images among all that are evaluated, int64.
        repeat: 0 to num_repeats - 1.
        num_repeats: times that each image is seen at.
        offset: where the first image's times lie, in [0, 1).
        t_min: the least time.
    """
    place = (repeat + (offset + image.double() * GOLDEN_RATIO) % 1) / num_repeats
    return (t_min + (1 - t_min) * place).float()
