"""Learning rate over the steps of a run, as a factor of the optimizer's rate."""

from __future__ import annotations

import math


class Constant:
    """Linear warm-up, then constant.

    Args:
        warmup_steps: steps until the full rate.
    """

    def __init__(self, warmup_steps: int = 0) -> None:
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        """The factor at a step, in [0, 1]."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


class WarmupCosine(Constant):
    """Linear warm-up, then a half cosine down to zero.

    Args:
        warmup_steps: steps until the full rate.
        total_steps: steps until zero; usually trainer.max_steps.
    """

    def __init__(self, warmup_steps: int, total_steps: int) -> None:
        super().__init__(warmup_steps)
        self.total_steps = total_steps

    def __call__(self, step: int) -> float:
        """The factor at a step, in [0, 1]."""
        done = min(1.0, max(0, step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return super().__call__(step) * (1 + math.cos(math.pi * done)) / 2
