"""Denoisers: a network, a schedule and a parametrisation, called as denoiser(x_t, t, condition) to give x̂.

Training minimises weight(t) |prediction - target|^2, where prediction and target are what the parametrisation says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lit_medgen.batch import Condition
from lit_medgen.diffusion.gaussian import GaussianProcess, broadcast
from lit_medgen.diffusion.parametrisations import Parametrisation, ParametrisationName
from lit_medgen.diffusion.schedules import Schedule


class Denoises(Protocol):
    """Anything a sampler can walk: a `Denoiser`, guidance around one, or an exact formula in a test."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that it was built with."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂ of the shape of x_t, b c *s; t: b."""
        ...


@runtime_checkable
class KnowsTime(Protocol):
    """A denoiser that needs less where the CPU knows the time, as in sampling; for a tensor's values it would wait."""

    def at(self, t: float) -> Denoises:
        """What gives the same x̂ at the time t, in as few evaluations as that time needs."""
        ...


def at_time(denoiser: Denoises, t: float) -> Denoises:
    """What a sampler calls at a time t: the denoiser itself unless it `KnowsTime`."""
    return denoiser.at(t) if isinstance(denoiser, KnowsTime) else denoiser


class Watched:
    """A denoiser that keeps what it gave, in `found`."""

    def __init__(self, denoiser: Denoises, found: list[Tensor] | None = None) -> None:
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.found = [] if found is None else found

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What the denoiser gives."""
        self.found.append(self.denoiser(x_t, t, condition))
        return self.found[-1]

    def at(self, t: float) -> Watched:
        """Keeps in the same list what the denoiser gives at that time."""
        return Watched(at_time(self.denoiser, t), self.found)

    def some(self, num: int) -> list[Tensor]:
        """At most `num` of them, evenly spread, the first among them."""
        return [self.found[i] for i in sorted({len(self.found) * k // num for k in range(num)})]


class LossWeight(ABC):
    """Weight of the squared error of a prediction, by its noise level."""

    @abstractmethod
    def __call__(self, t: Tensor, schedule: Schedule, parametrisation: Parametrisation) -> Tensor:
        """Loss weight of each image from its time; b -> b."""


class UniformWeight(LossWeight):
    """Weight 1 on the predicted quantity: Ho et al. 2020, eq. 14 (L_simple) when it is eps."""

    def __call__(self, t: Tensor, schedule: Schedule, parametrisation: Parametrisation) -> Tensor:
        """1 for each image; b -> b."""
        return torch.ones_like(t)


class MinSNR(LossWeight):
    """min(SNR, gamma) as the weight of |x̂ - x|^2, whatever is predicted.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", eq. 7 and section 3.4. Where the
    schedule ends in pure noise, the weight falls to 0 towards t = 1; `UniformWeight` trains those times as well.

    Args:
        gamma: the SNR above which all times count alike.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, t: Tensor, schedule: Schedule, parametrisation: Parametrisation) -> Tensor:
        """Loss weight of each image from its time; b -> b."""
        return schedule.log_snr(t).exp().clamp(max=self.gamma) / parametrisation.gain(t, schedule)


class Denoiser(nn.Module):
    """A network that predicts x, eps, v or a velocity, wrapped to give x̂.

    Args:
        network: called as network(x_t, t, condition), t: b in [0, 1]; returns the shape of x_t.
        schedule: the noise schedule.
        parametrisation: what the network's output means: "x", "eps", "v" or "velocity".
        weight: weight of the loss over time; None: `UniformWeight`.

    Raises:
        ValueError: "eps" on a schedule that ends in pure noise: x_1 is eps itself, which says nothing of x̂ (Lin et al.
            2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.2).
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        parametrisation: ParametrisationName = "eps",
        weight: LossWeight | None = None,
    ) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule
        self.process = GaussianProcess(schedule)
        self.parametrisation = Parametrisation.named(parametrisation)
        if parametrisation == "eps" and schedule.ends_in_noise:
            raise ValueError(
                f"parametrisation is 'eps', but schedule {type(schedule).__name__} ends in pure noise (alpha(1) = 0), "
                "where eps says nothing of the data; give 'v', 'velocity' or 'x'."
            )
        self.weight = weight or UniformWeight()

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂: b c *s in the dtype of x_t, from x_t: b c *s and t: b."""
        return self.parametrisation.to_x(self.predict(x_t, t, condition).to(x_t.dtype), x_t, t, self.process)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's output: x, eps, v or a velocity, as trained."""
        prediction: Tensor = self.network(x_t, t, condition)
        return prediction

    def target(self, x: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network should predict, given the data."""
        return self.parametrisation.target(x, x_t, t, self.process)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The squared error of every voxel, b c *s; a subclass may measure another."""
        return (prediction - target) ** 2

    def weighted_error(self, x: Tensor, t: Tensor, eps: Tensor, condition: Condition) -> Tensor:
        """weight(t) error(prediction, target) of every voxel, b c *s; its mean is the loss.

        Args:
            x: the data, b c *s.
            t: times, b.
            eps: noise drawn from N(0, I), b c *s.
            condition: what the images are made from.
        """
        x_t = self.process.perturb(x, t, eps)
        error = self.error(self.predict(x_t, t, condition).to(x.dtype), self.target(x, x_t, t))
        return broadcast(self.weight(t, self.schedule, self.parametrisation), error) * error
