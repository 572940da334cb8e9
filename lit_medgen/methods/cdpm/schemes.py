"""Schemes: the stages in which a cDPM generates the slices of a volume, and which slices each is conditioned on.

`Autoregressive` is the paper's (Peng et al. 2023, section 3.2 and figure 1); `LongRange` and `Hierarchy` follow
Harvey et al. 2022, "Flexible Diffusion Modeling of Long Videos", section 4 and figure 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class Stage:
    """One run of the sampler: the slices that it generates, and those that it is conditioned on."""

    target: list[int]
    condition: list[int]


class Scheme(ABC):
    """Splits a volume into stages.

    Args:
        num_target: slices that a stage generates (the last may generate fewer).
        num_condition: maximum of slices that a stage is conditioned on.
    """

    def __init__(self, num_target: int = 10, num_condition: int = 10) -> None:
        if num_target < 1 or num_condition < 1:
            raise ValueError(
                f"scheme.init_args: num_target {num_target} and num_condition {num_condition} must be at least 1."
            )
        self.num_target, self.num_condition = num_target, num_condition

    @abstractmethod
    def stages(self, num_slices: int) -> list[Stage]:
        """Stages that generate every slice of 0 ... num_slices - 1 once, conditioned on slices of earlier stages."""

    def _runs(self, slices: list[int]) -> list[list[int]]:
        """The slices in runs of `num_target`."""
        return [slices[i : i + self.num_target] for i in range(0, len(slices), self.num_target)]


class Autoregressive(Scheme):
    """Neighbouring slices, each stage from the slices just before it (the paper: 13 stages of 10 for 128 slices)."""

    def stages(self, num_slices: int) -> list[Stage]:
        """Stages that generate every slice of 0 ... num_slices - 1 once, conditioned on slices of earlier stages."""
        runs = self._runs(list(range(num_slices)))
        return [Stage(run, list(range(max(0, run[0] - self.num_condition), run[0]))) for run in runs]


class LongRange(Scheme):
    """Neighbouring slices, each stage from the slices just before it and as many spread over all earlier ones.

    The first slices remain conditions to the end, which limits the drift of a purely autoregressive chain.
    """

    def stages(self, num_slices: int) -> list[Stage]:
        """Stages that generate every slice of 0 ... num_slices - 1 once, conditioned on slices of earlier stages."""
        stages = []
        for run in self._runs(list(range(num_slices))):
            near = list(range(max(0, run[0] - (self.num_condition + 1) // 2), run[0]))
            far = spread(near[0] if near else 0, self.num_condition - len(near))
            stages.append(Stage(run, far + near))
        return stages


class Hierarchy(Scheme):
    """First slices spread over the whole volume, then those between in equal parts, from the nearest on both sides.

    A part is seamless if all its neighbours are conditions: for 40 slices that holds with 12 target and 8 condition
    slices, but not with 14 and 6.
    """

    def stages(self, num_slices: int) -> list[Stage]:
        """Stages that generate every slice of 0 ... num_slices - 1 once, conditioned on slices of earlier stages."""
        first = spread(num_slices, self.num_target)
        stages, known = [Stage(first, [])], set(first)
        left = [i for i in range(num_slices) if i not in known]
        num_parts = math.ceil(len(left) / self.num_target)
        for part in range(num_parts):
            run = left[part * len(left) // num_parts : (part + 1) * len(left) // num_parts]
            within = sorted(i for i in known if run[0] < i < run[-1])
            below = sorted((i for i in known if i < run[0]), reverse=True)
            above = sorted(i for i in known if i > run[-1])
            in_turn = [i for pair in zip_longest(below, above) for i in pair if i is not None]
            stages.append(Stage(run, sorted((within + in_turn)[: self.num_condition])))
            known.update(run)
        return stages


def spread(num: int, count: int) -> list[int]:
    """Up to `count` of the numbers 0 ... num - 1, evenly spread, both ends included; one alone is the middle."""
    if count <= 0 or num <= 0:
        return []
    if count == 1:
        return [num // 2]
    return sorted({round(k * (num - 1) / (count - 1)) for k in range(count)})
