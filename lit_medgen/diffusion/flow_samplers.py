r"""Flow samplers: they walk the differential equation of the flow in x itself, by Euler's and by Heun's rule.

    dx_t/dt = alpha'_t x̂ + sigma'_t epŝ,     that is     dx = x̂ d alpha + epŝ d sigma.

In the second form no step divides by alpha_t, so pure noise (alpha(1) = 0) is a point like any other, and none needs
the derivatives, which are infinite at t = 0 where variance is preserved. For rectified flow, Euler's rule is
x_s = x_t + (tau_s - tau_t) (epŝ - x̂), also with a shift (Esser et al. 2024, "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis", section 2).
"""

from __future__ import annotations

from torch import Tensor

from lit_medgen.diffusion.samplers import DDIM, NoiseLevel, NoiseLike, Sampler, Spacing, Walker, eps_from_x


class FlowEuler(DDIM):
    """Euler's rule along the flow: first order, one evaluation a step.

    x_t = alpha_t x̂ + sigma_t epŝ, so a step ends at alpha_s x̂ + sigma_s epŝ, which is that of DDIM without noise; other
    than `DDIM` it is spaced evenly in t.

    Args:
        num_steps: steps.
        spacing: which times are visited.
    """

    def __init__(self, num_steps: int = 50, spacing: Spacing = "trailing") -> None:
        super().__init__(num_steps, spacing)


class FlowHeun(Sampler):
    """Heun's rule along the flow: second order, two evaluations a step, one in the last.

    Args:
        num_steps: steps.
        spacing: which times are visited.
    """

    def __init__(self, num_steps: int = 25, spacing: Spacing = "trailing") -> None:
        super().__init__(num_steps, spacing)

    def walk(self, walker: Walker, x: Tensor, grid: Tensor, noise: NoiseLike) -> Tensor:
        """x at grid[-1], from x at grid[0]."""
        for t, s in walker.steps(grid):
            x_hat = walker.x_hat(x, t)
            eps = eps_from_x(x_hat, x, t)
            euler = _moved(x, x_hat, eps, t, s)
            if s.t > 0:  # at s = 0 eps is 0 / 0; Euler is exact in x̂ there
                later = walker.x_hat(euler, s)
                euler = _moved(x, (x_hat + later) / 2, (eps + eps_from_x(later, euler, s)) / 2, t, s)
            x = euler
        return x


def _moved(x: Tensor, x_hat: Tensor, eps: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """x_s from x_t with one x̂ and one epŝ for the whole step."""
    return x + (s.alpha - t.alpha) * x_hat + (s.sigma - t.sigma) * eps
