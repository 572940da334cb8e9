r"""Samplers: they walk a denoiser from t = 1 to 0, right at every number of steps.

Each step goes from t to s < t, with x̂ = denoiser(x_t, t) and epŝ = (x_t - alpha_t x̂) / sigma_t:

    DDIM       x_s = alpha_s x̂ + sqrt(sigma_s^2 - tau^2) epŝ + tau n,  tau = eta sigma_s sqrt(1 - SNR_t / SNR_s)
               (Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12 and 16)
    ancestral  a sample of q(x_s | x_t, x̂), which is DDIM with eta = 1 (Ho et al. 2020, algorithm 2, for any s < t)
    Heun       d(x / alpha) / d(sigma / alpha) = epŝ, trapezoidal rule (Karras et al. 2022, algorithm 1)
    2M         exponential integrator in log(alpha / sigma) with a linear extrapolation of x̂; the same as DDIM from
               that x̂ (Lu et al. 2022, "DPM-Solver++", algorithm 2; with eta = 1 their SDE form)

Samplers that walk x itself: `flow_samplers`. The times a sampler visits matter more than its order: see `Spacing`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion.denoisers import Denoises, at_time
from lit_medgen.diffusion.schedules import Schedule

Spacing = Literal["uniform", "trailing", "log_snr", "karras"]
"""uniform: even in t from `start` to t_min, then 0; trailing: even in t from `start` to 0; log_snr: even in
log-SNR; karras: even in (sigma / alpha)^(1 / 7) (Karras et al. 2022, eq. 5)."""

LOG_SNR_FLOOR = -10.5
"""Where log_snr and karras start at the lowest: sigma / alpha = 190, pure noise to any eye (Karras et al. start at 80).

The linear schedules end above it. The cosine schedule goes on to -20; even steps would spend a third of themselves
there, where x̂ is the mean image. Schedules that end in pure noise take one step from t = 1 to the floor: x_1 says
nothing of the data, so the mean image must come in there.
"""

NoiseLike = Callable[[Tensor], Tensor]
"""Standard normal noise of the shape, dtype and device of its argument."""


def times(schedule: Schedule, num_steps: int, spacing: Spacing, start: float = 1.0, stop: float = 0.0) -> Tensor:
    """num_steps + 1 falling times from start to stop, float64, on the CPU.

    With stop = 0 the last step goes from t_min (the first discrete noise level) to 0: the log-SNR is infinite
    there, so no even spacing reaches it. log_snr and karras begin at `LOG_SNR_FLOOR` where `start` is below it; where
    `start` is pure noise (alpha = 0) they begin there all the same, and the floor comes second. At num_steps = T,
    uniform and trailing both visit the T discrete times.
    """
    lowest = stop if stop > 0 or spacing == "trailing" else schedule.t_min
    count = num_steps + 1 if lowest == stop else num_steps
    ends = torch.tensor([start, lowest], dtype=torch.float64)
    log_snr = on_cpu(schedule, schedule.log_snr, ends)
    if log_snr[0] == -math.inf and spacing in ("log_snr", "karras"):
        if num_steps == 1:
            return torch.tensor([start, stop], dtype=torch.float64)
        floor = on_cpu(schedule, schedule.time, torch.full_like(ends, LOG_SNR_FLOOR))[0]
        return torch.cat([ends[:1], times(schedule, num_steps - 1, spacing, float(floor), stop)])
    log_snr = log_snr.clamp(min=LOG_SNR_FLOOR)
    match spacing:
        case "uniform" | "trailing":
            t = _line(ends, count)
        case "log_snr":
            t = on_cpu(schedule, schedule.time, _line(log_snr, count))
        case "karras":
            rho = torch.exp(-log_snr / 2)  # sigma / alpha
            t = on_cpu(schedule, schedule.time, -2 * torch.log(_line(rho ** (1 / 7), count) ** 7))
    # Exact ends, whatever the inversion's rounding.
    if spacing in ("uniform", "trailing") or log_snr[0] > LOG_SNR_FLOOR:
        t[0] = start
    if count > 1:
        t[-1] = lowest
    return t if lowest == stop else torch.cat([t, t.new_zeros(1)])


def _line(ends: Tensor, count: int) -> Tensor:
    return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, count, dtype=ends.dtype))


def on_cpu(schedule: Schedule, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """A schedule's function of values on the CPU; a schedule with tensors of its own works where those are."""
    own = next((tensor.device for tensor in [*schedule.buffers(), *schedule.parameters()]), values.device)
    return function(values.to(own)).to(values.device)


class Sampler(ABC):
    """Walks a denoiser from x_1 ~ N(0, I) to a sample.

    Args:
        num_steps: steps, each with one evaluation of the network (Heun: two).
        spacing: which times are visited.
    """

    divides_by_alpha: bool = False
    """Whether its steps divide by alpha_t, which is 0 at t = 1 of some schedules."""

    def __init__(self, num_steps: int = 50, spacing: Spacing = "log_snr") -> None:
        if num_steps < 1:
            raise ValueError(f"sampler.init_args.num_steps is {num_steps}; give at least 1.")
        if spacing not in get_args(Spacing):
            raise ValueError(f"sampler.init_args.spacing is {spacing!r}; choose from {', '.join(get_args(Spacing))}.")
        self.num_steps = num_steps
        self.spacing: Spacing = spacing

    def check(self, schedule: Schedule) -> None:
        """ValueError if it does not suit a schedule that ends in pure noise; methods call it when they are made."""
        self._refuse_division(schedule)
        if schedule.ends_in_noise and self.spacing in ("log_snr", "karras"):
            raise ValueError(
                f"sampler.init_args.spacing is {self.spacing!r}, which leaves only one step for all of schedule "
                f"{type(schedule).__name__} below log-SNR {LOG_SNR_FLOOR}, where a sample gets its brightness; "
                "give 'trailing' or 'uniform'."
            )

    def _refuse_division(self, schedule: Schedule) -> None:
        if schedule.ends_in_noise and self.divides_by_alpha:
            raise ValueError(
                f"sampler is {type(self).__name__}, which divides by alpha(1): it is 0 with schedule "
                f"{type(schedule).__name__}; give FlowHeun, FlowEuler, DPMSolverPP2M, DDIM or Ancestral."
            )

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoises,
        x: Tensor,
        condition: Condition | None = None,
        noise: NoiseLike = torch.randn_like,
        start: float = 1.0,
        stop: float = 0.0,
    ) -> Tensor:
        """x at `stop`, from x at `start`: b c *s each. `noise` supplies the randomness of stochastic samplers."""
        if start == 1:
            self._refuse_division(denoiser.schedule)
        grid = times(denoiser.schedule, self.num_steps, self.spacing, start, stop)
        return self.walk(Walker(denoiser, condition or Condition()), x, grid, noise)

    @torch.no_grad()
    def invert(self, denoiser: Denoises, x: Tensor, level: float, condition: Condition | None = None) -> Tensor:
        """x at the time `level`, b c *s, whose sample by `restored` is the image x: b c *s, up to the sampler's error.

        The same formulas along rising times, as the probability flow has no direction (Song et al. 2021, section 4.3).
        Data itself has no noise to follow, so the way begins at t_min, the first noise level, with alpha x.

        Raises:
            ValueError: the sampler adds noise, which nothing gives back, or the level is not above t_min.
        """
        first = self._first_level(denoiser.schedule, level)
        grid = times(denoiser.schedule, self.num_steps, self.spacing, level, first).flip(0)
        walker = Walker(denoiser, condition or Condition())
        alpha = next(walker.steps(grid))[0].alpha
        return self.walk(walker, alpha * x, grid, torch.randn_like)

    @torch.no_grad()
    def restored(self, denoiser: Denoises, x_t: Tensor, level: float, condition: Condition | None = None) -> Tensor:
        """The image, b c *s, of what `invert` gave at that level: the way back, to t_min and out of its alpha."""
        first = self._first_level(denoiser.schedule, level)
        x = self(denoiser, x_t, condition, start=level, stop=first)
        alpha, _ = denoiser.schedule.alpha_sigma(torch.tensor([first], dtype=torch.float64))
        return x / alpha.item()

    def _first_level(self, schedule: Schedule, level: float) -> float:
        first = schedule.t_min
        if getattr(self, "eta", 0.0):
            raise ValueError("sampler.init_args.eta is above 0; an inversion needs a sampler without noise.")
        if not first < level <= 1:
            raise ValueError(f"level is {level}; give a time above {first:g}, the first noise level, and at most 1.")
        return first

    @abstractmethod
    def walk(self, walker: Walker, x: Tensor, grid: Tensor, noise: NoiseLike) -> Tensor:
        """x at grid[-1], from x at grid[0]; times fall, or rise in an inversion."""


class NoiseLevel(NamedTuple):
    """The numbers of one time, in double precision; they are the CPU's, so that no step waits for the device."""

    t: float
    alpha: float
    sigma: float
    half_log_snr: float
    """lambda = log(alpha / sigma)."""


class Walker:
    """A denoiser at scalar times: what the samplers' formulas are written in."""

    def __init__(self, denoiser: Denoises, condition: Condition) -> None:
        self.denoiser, self.condition = denoiser, condition

    def steps(self, grid: Tensor) -> Iterator[tuple[NoiseLevel, NoiseLevel]]:
        """(t, s) for every step along falling times; all their numbers are computed at once."""
        schedule = self.denoiser.schedule
        numbers = on_cpu(schedule, lambda t: torch.stack([*schedule.alpha_sigma(t), schedule.log_snr(t) / 2]), grid)
        return pairwise(map(NoiseLevel, grid.tolist(), *numbers.tolist()))

    def x_hat(self, x_t: Tensor, t: NoiseLevel) -> Tensor:
        """x̂ at a scalar time."""
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        times = torch.full((len(x_t),), t.t, dtype=dtype, device=x_t.device)
        return at_time(self.denoiser, t.t)(x_t, times, self.condition)


def eps_from_x(x_hat: Tensor, x_t: Tensor, t: NoiseLevel) -> Tensor:
    """The noise in x_t if x̂ were the data; b c *s."""
    return (x_t - t.alpha * x_hat) / t.sigma


class DDIM(Sampler):
    """Denoising diffusion implicit model (Song et al. 2021, eq. 12); first order.

    Args:
        num_steps: steps.
        spacing: which times are visited.
        eta: 0 is deterministic, 1 is ancestral sampling (eq. 16).
    """

    def __init__(self, num_steps: int = 50, spacing: Spacing = "log_snr", eta: float = 0.0) -> None:
        super().__init__(num_steps, spacing)
        if not 0 <= eta <= 1:
            raise ValueError(f"sampler.init_args.eta is {eta}; give 0 (no noise) to 1 (that of ancestral sampling).")
        self.eta = eta

    def walk(self, walker: Walker, x: Tensor, grid: Tensor, noise: NoiseLike) -> Tensor:
        """x at grid[-1], from x at grid[0]."""
        for t, s in walker.steps(grid):
            x = self.step(x, walker.x_hat(x, t), t, s, noise)
        return x

    def step(self, x: Tensor, x_hat: Tensor, t: NoiseLevel, s: NoiseLevel, noise: NoiseLike) -> Tensor:
        """x_s from x_t and x̂ (eq. 12)."""
        eps = eps_from_x(x_hat, x, t)
        share = -(self.eta**2) * math.expm1(2 * (t.half_log_snr - s.half_log_snr))  # tau^2 / sigma_s^2
        x = s.alpha * x_hat + s.sigma * math.sqrt(1 - share) * eps
        if self.eta > 0 and s.t > 0:
            x = x + s.sigma * math.sqrt(share) * noise(x)
        return x


class Ancestral(DDIM):
    """Samples of q(x_s | x_t, x̂) (Ho et al. 2020, algorithm 2, with the variance beta-tilde), for any s < t.

    Args:
        num_steps: steps.
        spacing: which times are visited.
    """

    def __init__(self, num_steps: int = 1000, spacing: Spacing = "uniform") -> None:
        super().__init__(num_steps, spacing, eta=1.0)


class Heun(Sampler):
    """Second-order deterministic sampler (Karras et al. 2022, algorithm 1); two evaluations a step, one in the last.

    It divides by alpha_t, so a schedule that ends in pure noise is refused; `FlowHeun` walks it.
    """

    divides_by_alpha = True

    def walk(self, walker: Walker, x: Tensor, grid: Tensor, noise: NoiseLike) -> Tensor:
        """x at grid[-1], from x at grid[0]."""
        for t, s in walker.steps(grid):
            step = s.sigma / s.alpha - t.sigma / t.alpha
            slope = eps_from_x(walker.x_hat(x, t), x, t)
            euler = s.alpha * (x / t.alpha + step * slope)
            if s.t > 0:  # at s = 0 the slope is 0 / 0; Euler is exact in x̂ there
                slope = (slope + eps_from_x(walker.x_hat(euler, s), euler, s)) / 2
                euler = s.alpha * (x / t.alpha + step * slope)
            x = euler
        return x


class DPMSolverPP2M(DDIM):
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): DDIM with x̂ extrapolated to the middle of the step.

    Second order (with noise, of the distribution) with one evaluation a step. With eta = 1 it is their SDE-DPM-Solver++
    2M, of which few steps were nearer to many of ancestral sampling than without noise (docs/notes/few_steps.md).

    Args:
        num_steps: steps.
        spacing: which times are visited.
        eta: 0 is deterministic, 1 has the noise of ancestral sampling; between them, as in `DDIM`.
    """

    def walk(self, walker: Walker, x: Tensor, grid: Tensor, noise: NoiseLike) -> Tensor:
        """x at grid[-1], from x at grid[0]."""
        before: tuple[Tensor, float] | None = None  # x̂ and step length in lambda of the step before
        for t, s in walker.steps(grid):
            x_hat = walker.x_hat(x, t)
            h = s.half_log_snr - t.half_log_snr
            middle = x_hat
            if before is not None and s.t > 0:  # the last step is infinitely long: first order
                ratio = h / (2 * before[1])  # 1 / (2 r), r = h_before / h
                middle = (1 + ratio) * x_hat - ratio * before[0]
            x = self.step(x, middle, t, s, noise)
            before = (x_hat, h)
        return x
